//! Requests and replies, byte by byte.

use std::io::Read;

use redirector::nbd::wire::{chunk, cmd, cmd_flag, error, export_flag, opt, rep};

use crate::lab::{Lab, MIB, eventually, noise};

#[test]
fn options_are_answered_as_the_protocol_says() {
    let lab = Lab::new();
    let mut peer = lab.connect();
    assert_eq!(peer.option(opt::LIST, &[]).unwrap(), [(rep::SERVER, b"\0\0\0\x03vms".to_vec())]);
    assert_eq!(peer.option(opt::LIST, b"x").unwrap_err().0, rep::ERR_INVALID);
    assert_eq!(peer.option(9999, b"x").unwrap_err().0, rep::ERR_UNSUP);
    assert_eq!(peer.option(opt::STARTTLS, &[]).unwrap_err().0, rep::ERR_POLICY);
    let (kind, text) = peer.option(opt::GO, b"\0\0\0\x03dos\0\0").unwrap_err();
    assert_eq!(kind, rep::ERR_UNKNOWN);
    assert!(text.contains("dos"), "{text}");
    assert_eq!(peer.option(opt::INFO, b"\0\0\0\x09vms\0\0").unwrap_err().0, rep::ERR_INVALID);
    let informed = peer.option(opt::INFO, b"\0\0\0\0\0\x01\0\x01").unwrap();
    let mut export = vec![0, 0];
    export.extend((64 * MIB).to_be_bytes());
    let flags = u16::from_be_bytes([informed[0].1[10], informed[0].1[11]]);
    assert_eq!(informed[0].1[..10], export);
    for flag in [export_flag::CAN_MULTI_CONN, export_flag::SEND_FUA, export_flag::SEND_FAST_ZERO] {
        assert_ne!(flags & flag, 0);
    }
    assert_eq!(informed[1].1, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(informed[2].1, b"\0\x01vms");
    // The empty name is the default export.
    peer.option(opt::GO, &[0; 6]).unwrap();
    assert_eq!(peer.read(0, 4096).unwrap(), [0; 4096]);
    let mut leaving = lab.connect();
    assert!(leaving.option(opt::ABORT, &[]).unwrap().is_empty());
    assert!(leaving.is_closed());
}

#[test]
fn many_requests_of_all_sizes_come_back_right() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    let mut offset = 0;
    let mut written = Vec::new();
    for (i, length) in
        [1usize, 511, 4096, 65_536, 65_537, 200_000, 1 << 20, (8 << 20) + 3].into_iter().enumerate()
    {
        let data = noise(i as u64, length);
        assert_eq!(peer.write(offset, &data).unwrap(), 0);
        written.push((offset, data));
        offset += length as u64;
    }
    for (offset, data) in &written {
        assert!(peer.read(*offset, data.len()).unwrap() == *data, "{} bytes at {offset}", data.len());
    }
    // A queue of requests in one go: every one is answered, in whatever order.
    for cookie in 0..500 {
        peer.send_write(cookie, 32 * MIB + cookie * 4096, &[u8::try_from(cookie % 256).unwrap(); 4096]);
    }
    let mut cookies: Vec<_> = (0..500).map(|_| peer.reply().unwrap()).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq((0..500).map(|cookie| (cookie, 0))));
    let all = peer.read(32 * MIB, 500 * 4096).unwrap();
    assert!(
        all.chunks(4096).enumerate().all(|(i, block)| block.iter().all(|byte| usize::from(*byte) == i % 256))
    );
    // What one connection wrote, another reads, and finds in the file after a flush.
    assert_eq!(lab.peer().flush().unwrap(), 0);
    let file = std::fs::read(lab.path("lun.img")).unwrap();
    assert!(file[..1] == written[0].1[..]);
}

#[test]
fn zeroes_trims_and_durable_writes() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    for flags in [0, cmd_flag::NO_HOLE, cmd_flag::FUA, cmd_flag::NO_HOLE | cmd_flag::FUA] {
        assert_eq!(peer.write_with(cmd_flag::FUA, 0, &[9; 16_384]).unwrap(), 0);
        assert_eq!(peer.zero(flags, 1000, 10_000).unwrap(), 0);
        let data = peer.read(0, 16_384).unwrap();
        assert!(data[1000..11_000].iter().all(|byte| *byte == 0), "{flags}");
        assert!(data[..1000].iter().chain(&data[11_000..]).all(|byte| *byte == 9), "{flags}");
    }
    let fast = peer.zero(cmd_flag::FAST_ZERO, 0, 4096).unwrap();
    assert!(fast == 0 || fast == error::ENOTSUP, "{fast}");
    assert_eq!(peer.trim(0, 64 << 20).unwrap(), 0);
    assert_eq!(peer.flush().unwrap(), 0);
    // A zeroing request may be longer than any payload.
    assert_eq!(peer.write(63 * MIB, &[1; 4096]).unwrap(), 0);
    assert_eq!(peer.zero(0, 0, 64 << 20).unwrap(), 0);
    assert_eq!(peer.read(63 * MIB, 4096).unwrap(), [0; 4096]);
}

#[test]
fn invalid_requests_are_refused_and_the_connection_goes_on() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    let size = 64 * MIB;
    assert_eq!(peer.read_error(size, 1).unwrap(), error::EINVAL);
    assert_eq!(peer.read_error(u64::MAX, 1).unwrap(), error::EINVAL);
    assert_eq!(peer.write(size - 1, &[1; 2]).unwrap(), error::ENOSPC);
    assert_eq!(peer.write(0, &vec![1; (32 << 20) + 1]).unwrap(), error::EOVERFLOW);
    assert_eq!(peer.write_with(1 << 9, 0, &[1; 100]).unwrap(), error::EINVAL);
    assert_eq!(peer.trim(size, 1).unwrap(), error::EINVAL);
    peer.send(cmd::CACHE, 0, 5, 0, 4096, &[]);
    assert_eq!(peer.reply().unwrap(), (5, error::EINVAL));
    assert_eq!(peer.read(0, 4096).unwrap(), [0; 4096]);
    peer.send(cmd::DISC, 0, 0, 0, 0, &[]);
    assert!(peer.is_closed());
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let mut lab = Lab::new();
    lab.config.read_only = true;
    lab.restart();
    let mut peer = lab.peer();
    assert_eq!(peer.write(0, &[1; 512]).unwrap(), error::EPERM);
    assert_eq!(peer.trim(0, 512).unwrap(), error::EPERM);
    assert_eq!(peer.zero(0, 0, 512).unwrap(), error::EPERM);
    assert_eq!(peer.flush().unwrap(), 0);
    assert_eq!(peer.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn structured_replies() {
    let lab = Lab::new();
    let mut peer = lab.connect();
    peer.option(opt::STRUCTURED_REPLY, &[]).unwrap();
    peer.go().unwrap();
    let mut header = [0; 20];
    let mut next = |peer: &mut crate::peer::Peer| {
        peer.stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
        assert_eq!(u16::from_be_bytes([header[4], header[5]]), chunk::FLAG_DONE);
        let mut payload = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
        peer.stream.read_exact(&mut payload).unwrap();
        (u16::from_be_bytes([header[6], header[7]]), payload)
    };
    assert_eq!(peer.write(4096, &[3; 4096]).unwrap(), 0);
    for flags in [0, cmd_flag::DF] {
        peer.send(cmd::READ, flags, 1, 4096, 4096, &[]);
        let (kind, payload) = next(&mut peer);
        assert_eq!((kind, &payload[..8]), (chunk::OFFSET_DATA, &4096u64.to_be_bytes()[..]));
        assert_eq!(payload[8..], [3; 4096]);
    }
    // A long hole is told as a hole, unless the client wants it in one piece of data.
    peer.send(cmd::READ, 0, 1, MIB, 1 << 20, &[]);
    let (kind, payload) = next(&mut peer);
    assert_eq!((kind, payload.len()), (chunk::OFFSET_HOLE, 12));
    peer.send(cmd::READ, cmd_flag::DF, 1, MIB, 1 << 20, &[]);
    let (kind, payload) = next(&mut peer);
    assert_eq!((kind, payload.len()), (chunk::OFFSET_DATA, (1 << 20) + 8));
    peer.send(cmd::READ, 0, 1, 64 * MIB, 1, &[]);
    assert_eq!(next(&mut peer), (chunk::ERROR, vec![0, 0, 0, 22, 0, 0]));
}

#[test]
fn clients_are_counted_and_what_they_touch_is_known() {
    use lockd::ids::ClientId;
    let lab = Lab::new();
    let (mut five, mut six) = (lab.client(5), lab.client(6));
    five.write(MIB, &[1; 8192]).unwrap();
    five.flush().unwrap();
    five.read(0, 4096).unwrap();
    six.trim(2 * MIB, 65_536).unwrap();
    lab.peer().read(3 * MIB, 4096).unwrap();
    let status = lab.server.status();
    let of = |client| status.clients.iter().find(|status| status.client == client).unwrap();
    assert_eq!(of(Some(5)).counts.bytes_written, 8192);
    assert_eq!((of(Some(5)).counts.reads, of(Some(5)).counts.flushes), (1, 1));
    assert_eq!((of(Some(6)).counts.trims, of(Some(6)).counts.writes), (1, 0));
    assert_eq!(of(None).counts.reads, 1);
    assert_eq!(of(Some(5)).connections.len(), 1);
    let touched = |client, range| lab.server.touched(client, range).unwrap();
    assert_eq!(touched(Some(ClientId(5)), MIB..2 * MIB).changed, 1);
    assert_eq!(touched(Some(ClientId(6)), 0..2 * MIB).changed, 0);
    assert_eq!(touched(Some(ClientId(6)), 0..3 * MIB).changed, 1);
    assert_eq!(touched(None, 3 * MIB..4 * MIB).read, 1);
    assert_eq!(lab.server.touched(Some(ClientId(7)), 0..1), None);
    lab.server.forget_touched();
    assert_eq!(touched(Some(ClientId(5)), 0..64 * MIB).changed, 0);
    drop((five, six));
    eventually("the connections are gone", || lab.server.status().connections == 0);
}

#[test]
fn connections_are_bounded() {
    let lab = Lab::with(|config| config.connections_max = 2);
    let (first, _second) = (lab.peer(), lab.peer());
    let mut third = std::os::unix::net::UnixStream::connect(lab.path("nbd")).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0, "closed at once");
    drop(first);
    eventually("a place is free", || lab.server.status().connections == 1);
    lab.peer().read(0, 1).unwrap();
}
