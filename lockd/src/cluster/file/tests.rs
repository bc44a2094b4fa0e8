use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::{FenceChoice, Program};
use super::*;
use crate::ids::NodeName;

const EXAMPLE: &str = r#"name = "lab"
lease_s = 2.5
[tls]
dir = "tls"                               # relative to this file
[[node]]
name = "n1"
address = "10.77.0.1"
voter = true
[[node]]
name = "n2"
address = "10.77.0.2"
port = 7500
[[volume]]
name = "vms"
lun = ["nbd://10.78.0.9:10809/vms"]
fence = "auto"
"#;

fn parse(text: &str) -> Result<Cluster, ClusterFileError> {
    Cluster::parse(text, Path::new("/etc/csvfs/lab.toml"))
}

/// The example with one piece of its text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "{from}");
    parse(&EXAMPLE.replacen(from, to, 1)).expect_err("a mistake").to_string()
}

#[test]
fn the_example_of_the_manual_is_read_with_its_defaults() {
    let cluster = parse(EXAMPLE).unwrap();
    assert_eq!(cluster.name, "lab");
    assert_eq!(cluster.tls_dir, Path::new("/etc/csvfs/tls"));
    let times = [cluster.lease, cluster.grace, cluster.hold].map(|time| time.as_secs_f64());
    assert_eq!(times, [2.5, 15.0, 120.0]);
    let n2: NodeName = "n2".parse().unwrap();
    assert_eq!(cluster.voters().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1"]);
    assert_eq!(cluster.address(&n2, Program::Vmhost), Some(SocketAddr::from(([10, 77, 0, 2], 7502))));
    assert_eq!(cluster.node_by_id(n2.id()).unwrap().name, n2);
    assert_eq!(cluster.nodes[0].port, 7400);
    let (place, volume) = cluster.volume("vms").unwrap();
    assert_eq!((place, &volume.fence, volume.target_quiesce.as_secs()), (0, &FenceChoice::Auto, 10));
    let elsewhere = parse(&EXAMPLE.replace("dir = \"tls\"", "dir = \"/srv/tls\"")).unwrap();
    assert_eq!(elsewhere.tls_dir, Path::new("/srv/tls"));
    let agent = parse(&EXAMPLE.replace("auto", "agent:fence_ipmilan")).unwrap();
    assert_eq!(agent.volumes[0].fence, FenceChoice::Agent("fence_ipmilan".to_owned()));
}

#[test]
fn the_numbers_of_nodes_never_change() {
    let id = |name: &str| name.parse::<NodeName>().unwrap().id().0;
    assert_eq!(id("n1"), 0x08b3_7b07_b558_d4c0);
    assert_eq!(id("a"), 0xaf63_dc4c_8601_ec8c);
}

#[test]
fn mistakes_are_named_with_their_place_and_field() {
    let golden = [
        (
            with("name = \"lab\"", "name = \"Lab\""),
            "1:8: name: \"Lab\" is not a valid name: use 1 to 63 of a-z, 0-9 and -, with no - at either end",
        ),
        (with("name = \"lab\"\n", ""), "1:1: lease_s: missing field `name`"),
        (
            with("voter = true", "vote = true"),
            "8:1: vote in [[node]]: unknown field `vote`, expected one of `name`, `address`, `port`, `voter`, `watchdog`, `agent`",
        ),
        (
            with("lease_s = 2.5", "lease = 2"),
            "2:1: lease: unknown field `lease`, expected one of `name`, `tls`, `node`, `volume`, `lease_s`, `grace_s`, `hold_s`, `watchdog`",
        ),
        (with("lease_s = 2.5", "lease_s = 0"), "2:11: lease_s: 0 is outside the range 1 to 300 (seconds)"),
        (with("lease_s = 2.5", "lease_s = -1"), "2:11: lease_s: -1 is outside the range 1 to 300 (seconds)"),
        (
            with("lease_s = 2.5", "grace_s = nan"),
            "2:11: grace_s: NaN is outside the range 0.1 to 3600 (seconds)",
        ),
        (with("lease_s = 2.5", "lease_s = \"8\""), "2:11: lease_s: invalid type: string \"8\", expected f64"),
        (with("dir = \"tls\"", "dir = \"\""), "4:7: dir in [tls]: a directory is needed, such as \"tls\""),
        (
            with("10.77.0.1", "host1"),
            "7:11: address of node n1: \"host1\" is not an IP address; host names are not looked up",
        ),
        (
            with("10.77.0.1", "0.0.0.0"),
            "7:11: address of node n1: 0.0.0.0 is not an address at which the other nodes could reach it",
        ),
        (
            with("voter = true", "voter = 1"),
            "8:9: voter in [[node]]: invalid type: integer `1`, expected a boolean",
        ),
        (
            with("voter = true", ""),
            "5:1: voter in [[node]]: no node is a voter; give 1, 3 or 5 nodes voter = true",
        ),
        (
            with("port = 7500", "voter = true"),
            "12:9: voter in [[node]]: 2 voters survive the loss of no more of them than 1 would, and stop sooner: an even number has no majority when it is split in halves; make it 1 or 3 (a witness may run on a machine without the LUN)",
        ),
        (with("n2", "n1"), "10:8: name of node n1: there are two nodes n1; a name is given once"),
        (
            with("n2", "n_2"),
            "10:8: name in [[node]]: \"n_2\" is not a valid name: use 1 to 63 of a-z, 0-9 and -, with no - at either end",
        ),
        (
            with("10.77.0.2\"\nport = 7500", "10.77.0.1\"\nport = 7402"),
            "11:11: address of node n2: 10.77.0.1 port 7402 collides with node n1 (port 7400): each node needs 3 ports in a row for its programs",
        ),
        (with("7500", "65534"), "12:8: port of node n2: 65534 is outside the range 1 to 65533"),
        (with("7500", "0"), "12:8: port of node n2: 0 is outside the range 1 to 65533"),
        (with("7500", "7500\nport = 7600"), "13:1: port in [[node]]: duplicate key"),
        (with("[\"nbd://10.78.0.9:10809/vms\"]", "[]"), "15:7: lun of volume vms: 0 paths; a LUN has 1 to 8"),
        (
            with("[\"nbd://10.78.0.9:10809/vms\"]", "\"nbd://10.78.0.9/vms\""),
            "15:7: lun in [[volume]]: invalid type: string \"nbd://10.78.0.9/vms\", expected a sequence",
        ),
        (
            with("nbd://10.78.0.9:10809/vms", "nfs://x"),
            "15:8: lun of volume vms: \"nfs://x\" is no path to a LUN: it begins with nbd://, nbds://, nbd+unix://, nbds+unix://, iscsi://, file: or /",
        ),
        (with("lun = [\"nbd://10.78.0.9:10809/vms\"]\n", ""), "13:1: [[volume]]: missing field `lun`"),
        (
            with("fence = \"auto\"", "fence = \"stonith\""),
            "16:9: fence of volume vms: no fence is called \"stonith\"; there are \"auto\", \"scsi-pr\", \"nbd-target\", \"agent:COMMAND\" and \"lease\"",
        ),
        (
            with("fence = \"auto\"", "fence = \"lease\"\ntarget_quiesce_s = 20"),
            "16:9: fence of volume vms: \"lease\" wants grace_s (now 15) to be at least target_quiesce_s and the drift of the clocks, 20 + 0.0175: the target may execute what it has for as long",
        ),
        (
            with("fence = \"auto\"", "fence = \"scsi-pr\""),
            "16:9: fence of volume vms: \"scsi-pr\" wants iscsi:// paths only, or one block device: whoever is fenced must be refused on every path",
        ),
        (
            with("nbd://10.78.0.9:10809/vms", "iscsi://me%hunter2@h/t"),
            "15:8: lun of volume vms: the URL iscsi://h/t is wrong: a host, a target and a LUN are needed, with a slash between them; write iscsi://[USER@]HOST[:PORT]/TARGET/LUN[?secret-file=PATH]",
        ),
        (
            with(
                "\"nbd://10.78.0.9:10809/vms\"",
                "\"iscsi://me%hunter2@h/t/1\", \"iscsi://me%hunter2@h/t/1\"",
            ),
            "15:36: lun of volume vms: \"iscsi://me@h/t/1\" is there twice",
        ),
        (
            with("fence = \"auto\"", "fence = \"nbd-target\""),
            "16:9: fence of volume vms: \"nbd-target\" wants the address of csv-target's control port for each path in `lun`: control = [\"HOST:PORT\"]",
        ),
        (
            with("fence = \"auto\"", "control = [\"10.78.0.9:1\", \"10.78.0.8:1\"]"),
            "16:11: control of volume vms: 2 control ports for 1 paths in `lun`: whoever is fenced must be refused on every path, so give one for each, in the same order (the same one twice, if one csv-target serves both)",
        ),
        (
            with("fence = \"auto\"", "control = [\"10.78.0.9\"]"),
            "16:12: control of volume vms: \"10.78.0.9\" is no address of a control port: give HOST:PORT, as csv-target has it in --control",
        ),
        (
            with("fence = \"auto\"", "agent_timeout_s = 0.5"),
            "16:19: agent_timeout_s of volume vms: 0.5 is outside the range 1 to 600 (seconds)",
        ),
        (
            with("fence = \"auto\"", "agent = { action = \"on\" }"),
            "16:20: action in agent of volume vms: lockd says action, nodename, plug itself: the action, and the node's name",
        ),
        (
            with("fence = \"auto\"", "agent = { ip = [1] }"),
            "16:16: ip in agent of volume vms: a fence agent is told texts, whole numbers, true and false",
        ),
        (
            with("lease_s = 2.5", "watchdog = \"watchdog0\""),
            "2:12: watchdog: \"watchdog0\" is no device: give its path, such as /dev/watchdog",
        ),
        (
            with("fence = \"auto\"", "fence = \"agent: \""),
            "16:9: fence of volume vms: no fence is called \"agent: \"; there are \"auto\", \"scsi-pr\", \"nbd-target\", \"agent:COMMAND\" and \"lease\"",
        ),
        (
            with("fence = \"auto\"", "[[volume]]\nname = \"vms\"\nlun = [\"/dev/sdb\"]"),
            "17:8: name of volume vms: there are two volumes vms; a name is given once",
        ),
        (
            with("fence = \"auto\"", "[[volume]]\nname = \"b\"\nlun = [\"nbd://10.78.0.9:10809/vms\"]"),
            "18:8: lun of volume b: \"nbd://10.78.0.9:10809/vms\" is the LUN of volume vms already",
        ),
        (
            with("name = \"vms\"", "name = \"vms"),
            "14:12: name in [[volume]]: invalid basic string, expected `\"`",
        ),
        (parse("").expect_err("empty").to_string(), "1:1: the top of the file: missing field `name`"),
    ];
    let wrong: Vec<_> =
        golden.iter().filter(|(found, wanted)| *found != format!("/etc/csvfs/lab.toml:{wanted}")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_fences_need_is_read() {
    let text = EXAMPLE
        .replace("lease_s = 2.5", "watchdog = \"/dev/watchdog\"")
        .replace("port = 7500", "watchdog = \"/dev/watchdog1\"\n[node.agent]\nip = \"10.1.0.2\"\nport = 623")
        .replace("fence = \"auto\"", "control = [\"10.78.0.9:10810\"]\n[volume.agent]\nlanplus = true");
    let cluster = parse(&text).unwrap();
    let devices: Vec<_> = cluster.nodes.iter().map(|node| node.watchdog.clone().unwrap()).collect();
    assert_eq!(devices, [Path::new("/dev/watchdog"), Path::new("/dev/watchdog1")]);
    let keys = |keys: &BTreeMap<String, String>| format!("{keys:?}");
    assert_eq!(keys(&cluster.nodes[1].agent), r#"{"ip": "10.1.0.2", "port": "623"}"#);
    assert_eq!(keys(&cluster.volumes[0].agent), r#"{"lanplus": "true"}"#);
    assert_eq!(cluster.volumes[0].control, ["10.78.0.9:10810".parse().unwrap()]);
    assert_eq!(cluster.volumes[0].agent_timeout.as_secs(), 60);
    let named = text.replace("name = \"n1\"", "name = \"target\"");
    assert!(parse(&named).unwrap_err().to_string().contains("6:8: name in [[node]]: target.pem is"));
}

#[test]
fn the_grace_outlasts_the_target_and_the_drift_of_the_clocks() {
    let grace = |grace_s: f64| {
        let text = EXAMPLE.replace("lease_s = 2.5", &format!("lease_s = 8.0\ngrace_s = {grace_s:?}"));
        parse(&text.replace("\"auto\"", "\"lease\""))
    };
    assert!(grace(10.1).is_ok());
    // Just what the target may take, if all clocks went alike.
    assert!(grace(10.0).unwrap_err().to_string().contains("10 + 0.018"));
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_named() {
    let missing = Cluster::read(Path::new("/nonexistent/lab.toml")).unwrap_err().to_string();
    assert_eq!(
        missing,
        "the cluster file /nonexistent/lab.toml cannot be read: No such file or directory (os error 2)"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lab.toml");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Cluster::read(&path).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn too_many_voters_and_nodes_are_refused() {
    let cluster = |nodes: usize, voters: usize| {
        let mut text = "name = \"lab\"\n".to_owned();
        for n in 0..nodes {
            let voter = n < voters;
            text.push_str(&format!(
                "[[node]]\nname = \"n{n}\"\naddress = \"10.0.0.{}\"\nvoter = {voter}\n",
                n + 1
            ));
        }
        parse(&text).map(|cluster| cluster.voters().count()).map_err(|error| error.to_string())
    };
    assert_eq!([cluster(9, 1), cluster(9, 3), cluster(9, 5)], [Ok(1), Ok(3), Ok(5)]);
    assert!(cluster(9, 4).unwrap_err().contains("make it 3 or 5"));
    assert!(cluster(9, 7).unwrap_err().contains("7 voters are too many"));
    assert!(cluster(65, 1).unwrap_err().contains("a cluster has at most 64"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_text_is_read_or_refused_with_a_place(noise in "\\PC{0,80}", at in 0..EXAMPLE.len(), cut in 0..40_usize) {
        let end = (at + cut).min(EXAMPLE.len());
        let text = format!("{}{noise}{}", &EXAMPLE[..at], &EXAMPLE[end..]);
        if let Err(ClusterFileError::Mistake { line, column, .. }) = parse(&text) {
            prop_assert!(line >= 1 && column >= 1 && line <= text.lines().count() + 1);
        }
    }
}
