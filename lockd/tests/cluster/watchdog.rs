//! The watchdog of a host, with a file in its place.

use lockd::machine::ClientKind;

use crate::site::{MOUNT, Site, wait_for};

#[test]
fn a_watchdog_is_patted_while_the_lease_runs_and_stands_down_at_a_clean_end() {
    let mut site = Site::prepare(1, 1, 2.0);
    let device = site.run_base().with_file_name("watchdog");
    std::fs::write(&device, "").expect("a file");
    let line = format!("watchdog = {:?}\n[tls]", device.display().to_string());
    site.edit("grace_s = 1.0\n[tls]", &format!("grace_s = 3.0\n{line}"));
    // Both nodes have it in the file, and only one of them is looked at.
    site.edit("[[node]]\nname = \"n0\"", "[[node]]\nwatchdog = \"/dev/null\"\nname = \"n0\"");
    let refused = site.refusal_of(0);
    assert!(refused.contains("/dev/null cannot be set to 2 s"), "{refused}");
    site.edit("watchdog = \"/dev/null\"\n", "");
    site.start_node(0);
    let pats = || std::fs::read_to_string(&device).expect("text").len();
    wait_for("nothing is mounted: it is patted", || (pats() > 2).then_some(()));
    site.kill(0);
    site.edit(&line, "[tls]");
    site.start_node(0);
    std::fs::write(&device, "").expect("a file");
    site.edit(
        "[[node]]\nname = \"n1\"",
        &format!("[[node]]\nwatchdog = {:?}\nname = \"n1\"", device.display().to_string()),
    );
    site.start_node(1);
    site.register_volume(0);
    let mount = site.client(1, MOUNT);
    wait_for("the lease runs: it is patted", || (pats() > 2).then_some(()));
    // Without the cluster the lease runs out, and with it the pats.
    site.signal(0, libc::SIGSTOP);
    wait_for("the lease to be over", || {
        (!mount.shared_lease().holds(&lockd::clock::SystemClock)).then_some(())
    });
    let before = pats();
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert!(pats() <= before + 1, "it is patted on, with a volume mounted and no lease");
    site.signal(0, libc::SIGCONT);
    wait_for("the lease is won back: it is patted again", || (pats() > before + 2).then_some(()));
    mount.leave(mount.client()).expect("left");
    drop(mount);
    site.stop(1);
    assert!(std::fs::read_to_string(&device).expect("text").ends_with('V'), "it does not stand down");
    assert!(site.client(0, ClientKind::Tool).session_id().0 > 0);
}

#[test]
fn a_watchdog_that_is_not_there_or_too_slow_is_said_at_the_start() {
    let site = Site::prepare(1, 0, 2.0);
    site.edit("grace_s = 1.0\n[tls]", "grace_s = 1.0\nwatchdog = \"/dev/no-such-watchdog\"\n[tls]");
    let refused = site.refusal_of(0);
    assert!(refused.contains("grace_s is 1 s") && refused.contains("at least 2 s"), "{refused}");
    site.edit("grace_s = 1.0", "grace_s = 3.0");
    let refused = site.refusal_of(0);
    assert!(refused.contains("/dev/no-such-watchdog") && refused.contains("softdog"), "{refused}");
}
