//! What a process that was killed with many writes in flight leaves behind.
//!
//! Tried on Linux 6.18 with ext4: writes did land after the process had been reaped, for up to 80 ms, and the lock was
//! never free before the last of them had ended, because each request in flight holds the open file.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::*;

/// Set for the process that is to be killed: the path of the image.
const IMAGE: &str = "CSV_TEST_KILLED_WRITER";
const WRITE_LEN: usize = 1 << 20;
const IMAGE_LEN: u64 = 64 << 20;

/// Not a test: the process that writes until it is killed. Run by the test below.
#[test]
#[ignore = "run by another test as a process of its own"]
fn writer_process() {
    let Some(path) = std::env::var_os(IMAGE) else { return };
    let lun = FileLun::open(Path::new(&path), Options::default()).unwrap();
    let exclusive = lun.try_exclusive();
    assert!(exclusive.is_ok());
    let pool = Pool::default();
    for count in 1_u64.. {
        let mut buffer = pool.take(WRITE_LEN);
        for sector in buffer.chunks_exact_mut(512) {
            sector[..8].copy_from_slice(&count.to_le_bytes());
        }
        // A step that is odd in units of writes visits every place.
        let offset = count * 37 * WRITE_LEN as u64 % IMAGE_LEN;
        lun.write(offset, buffer.share(), false, Box::new(|_| {}));
        if count == 300 {
            // More than fit into the queue: many are in flight from now on.
            println!("\nwriting");
        }
    }
}

#[test]
fn nothing_lands_after_the_proof() {
    let directory = disk_directory();
    let path = image(&directory, IMAGE_LEN);
    for _ in 0..4 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "file::tests::killed::writer_process", "--ignored", "--nocapture"])
            .env(IMAGE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "writing"));

        let lun = FileLun::open(&path, Options::default()).unwrap();
        assert!(matches!(lun.try_exclusive(), Err(Holder::Process { pid, .. }) if pid == writer.id()));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let proof = lun.prove_ended(ClientId(1));
        assert!(matches!(proof, Proof::Ended(_)), "{proof:?}");
        let proven = fs::read(&path).unwrap();
        // A write that is still on its way has nothing to wait for: it would land in this time.
        std::thread::sleep(Duration::from_millis(150));
        assert!(fs::read(&path).unwrap() == proven, "a write of the killed process landed after the proof");
    }
}
