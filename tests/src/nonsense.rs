//! What means nothing to whoever is sent it, or means too much: arbitrary bytes, halves of messages, lengths that nobody has.

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::SmallRng;

/// What a process has occupied at most, in bytes of memory.
pub fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
}

/// So many bytes of noise.
pub fn noise(random: &mut SmallRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes[..]);
    bytes
}

/// For a target's ports.
pub fn for_target(random: &mut SmallRng) -> Vec<Vec<u8>> {
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for len in [1, 4, 17, 28, 128, 4096, 100_000] {
        sent.push(noise(random, len));
    }
    // A client's flags, then options of the NBD protocol: of random kinds, with lengths from nothing to all there is.
    for len in [0, 1, 4096, 65_536, 0x7fff_ffff_u32, u32::MAX] {
        for option in [1, 3, 5, 6, 7, 8, 10, random.random(), 0x4353_5601] {
            let mut bytes = vec![0, 0, 0, random.random_range(0..4)];
            bytes.extend_from_slice(b"IHAVEOPT");
            bytes.extend_from_slice(&u32::to_be_bytes(option));
            bytes.extend_from_slice(&len.to_be_bytes());
            let mut body = vec![0; (len as usize).min(100)];
            random.fill(&mut body[..]);
            bytes.extend_from_slice(&body);
            sent.push(bytes);
        }
    }
    // Half a line and much too long a line, for sockets that read lines.
    sent.push(b"{\"op\":".to_vec());
    sent.push(vec![b'x'; 3 << 20]);
    sent.push([b"[".repeat(100_000), b"\n".to_vec()].concat());
    sent.push(b"{\"op\":\"fence\",\"client\":-1}\n{\"op\":null}\n\n\n\0\n".to_vec());
    sent
}

/// A message cut off at every byte, but at so many places at most; then with more behind it than belongs to it.
pub fn halves(message: &[u8], places: usize) -> Vec<Vec<u8>> {
    let step = message.len().div_ceil(places).max(1);
    let mut all: Vec<Vec<u8>> =
        (0..message.len()).step_by(step).map(|length| message[..length].to_vec()).collect();
    all.push([message, &[0xff; 64]].concat());
    all
}

/// What decoders of length-prefixed messages take for a huge length, behind each number of a kind of message.
pub fn bombs(version: u8) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for kind in 0..48_u8 {
        // The widest of variable-length numbers, then a length of fixed size.
        all.push([&[version, kind, 0xfd], &[0xff; 40][..]].concat());
        all.push([&[version, kind, 0, 0, 0], &[0xff; 40][..]].concat());
        all.push([&[version, kind], &[0xfc, 0xff, 0xff, 0xff, 0x7f].repeat(12)[..]].concat());
    }
    all
}
