use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, SessionId};

struct Nodes {
    cluster: Cluster,
    first: SessionId,
    second: SessionId,
    third: SessionId,
    a: ClientId,
    b: ClientId,
}

/// Three nodes with mounts; the first holds a file, the coordinator role and a lock.
fn nodes() -> Nodes {
    nodes_fenced_by(FenceMethod::NbdTarget)
}

fn registration(fence: FenceMethod) -> Command {
    Command::RegisterVolume {
        volume: VOLUME,
        name: "vms".to_owned(),
        fence,
        quiesce_ns: QUIESCE_NS,
        epoch_floor: crate::ids::Epoch(0),
    }
}

fn nodes_fenced_by(method: FenceMethod) -> Nodes {
    let mut cluster = Cluster::new();
    cluster.done(registration(method));
    let (first, a) = cluster.mounted("n1");
    let (second, b) = cluster.mounted("n2");
    let (third, _) = cluster.mounted("n3");
    cluster.acquire(a, &file(1));
    cluster.acquire(a, &COORDINATOR);
    cluster.lock(a, 5, 1, 0, 9);
    Nodes { cluster, first, second, third, a, b }
}

#[test]
fn l9_what_an_ended_session_held_is_free_when_it_is_fenced() {
    let Nodes { mut cluster, first, second, third, a, b } = nodes();
    let waiting = cluster.wait_for(b, 5, 1, 0, 9);
    cluster.end(first);
    let refusal = cluster.ask_refused(b, acquisition(&file(1)));
    assert!(
        matches!(&refusal, Refusal::Held { holder, .. } if holder.state == HolderState::Orphaned),
        "{refusal:?}"
    );
    assert!(!cluster.is_free_for(b, 5, 0, 9), "its writes may still land under its locks");
    for session in [second, third] {
        cluster.report(Victim::Session(first), session, Report::Drained);
    }
    assert_eq!(cluster.holder(&COORDINATOR), Some(a));
    cluster.fence(Victim::Session(first), second);
    assert_eq!(cluster.granted(), [waiting]);
    assert!(cluster.events.contains(&EventKind::Fenced { volume: VOLUME, victim: Victim::Session(first) }));
    cluster.acquire(b, &file(1));
    cluster.acquire(b, &COORDINATOR);
    let Answer::Sessions(sessions) = cluster.state.query(&Query::Sessions) else { panic!() };
    assert_eq!(sessions.len(), 2, "nothing of it is left");
}

#[test]
fn l9_virtual_machines_wait_for_all_volumes_and_for_lease_and_grace() {
    let Nodes { mut cluster, first, second, third, b: _, a: _ } = nodes();
    let other = ClientKind::Csvfs { volume: OTHER_VOLUME };
    cluster.join(first, other);
    let host = cluster.join(first, ClientKind::Vmhost);
    let host_2 = cluster.join(second, ClientKind::Vmhost);
    cluster.acquire(host, &vm("web"));
    cluster.end(first);
    let grace_over = cluster.time_ns + Settings::default().grace_ns;
    let fence = |volume, report| Command::FenceReport {
        volume,
        victim: Victim::Session(first),
        reporter: second,
        report,
    };
    cluster.pass_s(5);
    let method = Report::Fenced { method: FenceMethod::Agent };
    cluster.done(fence(VOLUME, method));
    cluster.report(Victim::Session(first), second, Report::Drained);
    cluster.report(Victim::Session(first), third, Report::Drained);
    assert_eq!(cluster.holder(&file(1)), None, "freed per volume");
    let held = |cluster: &mut Cluster| {
        matches!(cluster.ask_refused(host_2, acquisition(&vm("web"))), Refusal::Held { .. })
    };
    assert!(held(&mut cluster), "the other volume's fence is open");
    cluster.time_ns = grace_over - 2;
    cluster.done(fence(OTHER_VOLUME, method));
    assert!(held(&mut cluster), "fenced everywhere; a guest computes on until the grace is over");
    assert_eq!(cluster.state.wakes_at_ns(), Some(grace_over));
    cluster.time_ns = grace_over - 1;
    cluster.done(Command::Tick);
    assert!(held(&mut cluster));
    cluster.time_ns = grace_over;
    cluster.done(Command::Tick);
    assert_eq!(cluster.state.wakes_at_ns(), None);
    cluster.acquire(host_2, &vm("web"));
}

#[test]
fn l9_who_is_ended_before_its_lease_is_over_is_waited_for_longer() {
    let mut cluster = Cluster::new();
    let session = cluster.open("n1");
    let host = cluster.join(session, ClientKind::Vmhost);
    cluster.acquire(host, &vm("web"));
    let Settings { lease_ns, grace_ns } = Settings::default();
    cluster.done(Command::EndSession { session, cause: EndCause::Forced });
    assert_eq!(cluster.holder(&vm("web")), Some(host));
    assert_eq!(cluster.state.wakes_at_ns(), Some(cluster.time_ns + lease_ns + grace_ns));
    cluster.time_ns += lease_ns + grace_ns;
    // Any entry does.
    cluster.open("n2");
    assert_eq!(cluster.holder(&vm("web")), None);
}

#[test]
fn f1_a_fence_needs_the_method_and_every_live_sessions_report() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes();
    cluster.end(first);
    let wanted = cluster.events.iter().find(|event| matches!(event, EventKind::FenceWanted { .. }));
    let victim = Victim::Session(first);
    let expected = EventKind::FenceWanted { volume: VOLUME, victim, waiting: vec![second, third] };
    assert_eq!(wanted, Some(&expected));
    // Who comes later knows that the victim has ended.
    let (fourth, _) = cluster.mounted("n4");
    cluster.fence(victim, fourth);
    cluster.report(victim, second, Report::Drained);
    cluster.report(victim, second, Report::Drained);
    assert_eq!(cluster.holder(&file(1)), Some(a), "the third may still carry a write of it");
    let Answer::Fences(fences) = cluster.state.query(&Query::Fences) else { panic!() };
    assert_eq!((fences[0].method, &fences[0].waiting), (Some(FenceMethod::NbdTarget), &vec![third]));
    cluster.report(victim, third, Report::Drained);
    assert_eq!(cluster.holder(&file(1)), None);
    // Reports that come again are answered the same.
    cluster.report(victim, third, Report::Drained);
}

#[test]
fn f1_who_does_not_report_is_fenced_itself() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes();
    cluster.end(first);
    cluster.fence(Victim::Session(first), second);
    cluster.report(Victim::Session(first), second, Report::Drained);
    // The third says nothing, and unmounts besides: that is no report.
    let mounts = cluster.state.clients_of(third);
    cluster.ask_done(mounts[0], Operation::Leave);
    cluster.done(Command::EndSession { session: third, cause: EndCause::Forced });
    assert_eq!(cluster.holder(&file(1)), Some(a), "ended is not fenced");
    cluster.fence(Victim::Session(third), second);
    assert_eq!(cluster.holder(&file(1)), None);
    cluster.report(Victim::Session(third), second, Report::Drained);
    assert!(cluster.state.fences.is_empty());
}

#[test]
fn f1_two_that_die_together_wait_for_each_others_method_only() {
    let Nodes { mut cluster, first, second, third, a, b } = nodes();
    cluster.acquire(b, &file(2));
    cluster.end(first);
    cluster.end(second);
    cluster.report(Victim::Session(first), third, Report::Drained);
    cluster.report(Victim::Session(second), third, Report::Drained);
    cluster.fence(Victim::Session(first), third);
    assert_eq!(cluster.holder(&file(1)), Some(a), "the second may carry for the first");
    cluster.fence(Victim::Session(second), third);
    assert_eq!((cluster.holder(&file(1)), cluster.holder(&file(2))), (None, None));
}

#[test]
fn a_report_counts_only_from_the_living_about_the_dead_and_by_a_method_that_fits() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes();
    let report = |victim, reporter, method| Command::FenceReport {
        volume: VOLUME,
        victim,
        reporter,
        report: Report::Fenced { method },
    };
    let victim = Victim::Session(first);
    let early = report(victim, second, FenceMethod::Agent);
    assert_eq!(cluster.refused(early), Refusal::NoFence { volume: VOLUME, victim });
    cluster.end(first);
    cluster.end(third);
    let dead = report(victim, third, FenceMethod::Agent);
    assert_eq!(cluster.refused(dead), Refusal::SessionEnded(third));
    for method in [FenceMethod::Lease, FenceMethod::Quiesce] {
        let refusal = Refusal::FenceMethod { volume: VOLUME, victim, method };
        assert_eq!(cluster.refused(report(victim, second, method)), refusal);
    }
    let unknown = Victim::Client(ClientId(99));
    let refusal = Refusal::NoFence { volume: VOLUME, victim: unknown };
    assert_eq!(cluster.refused(report(unknown, second, FenceMethod::Quiesce)), refusal);
    assert_eq!(cluster.holder(&file(1)), Some(a));
}

#[test]
fn f1_the_lease_method_waits_for_lease_and_grace() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes_fenced_by(FenceMethod::Lease);
    cluster.end(first);
    let victim = Victim::Session(first);
    for session in [second, third] {
        cluster.report(victim, session, Report::Drained);
    }
    let method = FenceMethod::Lease;
    let waited =
        Command::FenceReport { volume: VOLUME, victim, reporter: second, report: Report::Fenced { method } };
    cluster.pass_s(10);
    assert_eq!(cluster.refused(waited.clone()), Refusal::TooEarly { wait_ns: 5 * SECOND_NS });
    assert_eq!(cluster.holder(&file(1)), Some(a));
    cluster.pass_s(5);
    cluster.done(waited);
    assert_eq!(cluster.holder(&file(1)), None);
}

#[test]
fn f1_who_has_not_reported_for_a_while_is_overdue() {
    let Nodes { mut cluster, first, second, third, .. } = nodes();
    cluster.end(first);
    cluster.report(Victim::Session(first), second, Report::Drained);
    let overdue = |cluster: &Cluster, seconds: u64| {
        cluster.state.overdue_reporters(cluster.time_ns + seconds * SECOND_NS, 8 * SECOND_NS)
    };
    assert!(overdue(&cluster, 7).is_empty());
    assert_eq!(overdue(&cluster, 8).into_iter().collect::<Vec<_>>(), [third]);
    cluster.done(Command::EndSession { session: third, cause: EndCause::Forced });
    // Who has ended is not ended again; the second has yet to report about it.
    assert_eq!(overdue(&cluster, 100).into_iter().collect::<Vec<_>>(), [second]);
}

#[test]
fn f1_a_host_that_has_come_back_answers_for_its_own_dead_processes_only() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes_fenced_by(FenceMethod::Agent);
    cluster.end(first);
    let victim = Victim::Session(first);
    for session in [second, third] {
        cluster.report(victim, session, Report::Drained);
    }
    let method = FenceMethod::Quiesce;
    let report = |reporter| Command::FenceReport {
        volume: VOLUME,
        victim,
        reporter,
        report: Report::Fenced { method },
    };
    assert_eq!(cluster.refused(report(second)), Refusal::FenceMethod { volume: VOLUME, victim, method });
    assert_eq!(cluster.holder(&file(1)), Some(a));
    let again = cluster.open("n1");
    cluster.done(report(again));
    assert_eq!(cluster.holder(&file(1)), None);
}

#[test]
fn all_mounts_of_a_volume_have_the_same_fence() {
    let Nodes { mut cluster, first, second, third, .. } = nodes();
    let (registered, asked) = (FenceMethod::NbdTarget, FenceMethod::Lease);
    let refusal = cluster.refused(registration(asked));
    assert_eq!(refusal, Refusal::OtherFence { volume: VOLUME, registered, asked });
    assert!(refusal.to_string().contains("unmount everywhere first"), "{refusal}");
    cluster.done(registration(registered));
    for session in [first, second, third] {
        let mounts = cluster.state.clients_of(session);
        cluster.ask_done(mounts[0], Operation::Leave);
    }
    cluster.done(registration(asked));
}

#[test]
fn all_mounts_of_a_volume_have_the_same_quiesce_time() {
    let Nodes { mut cluster, .. } = nodes();
    let mut other = registration(FenceMethod::NbdTarget);
    let Command::RegisterVolume { quiesce_ns, .. } = &mut other else { panic!() };
    *quiesce_ns = 20 * SECOND_NS;
    let refusal = cluster.refused(other);
    let (registered_ns, asked_ns) = (QUIESCE_NS, 20 * SECOND_NS);
    assert_eq!(refusal, Refusal::OtherQuiesce { volume: VOLUME, registered_ns, asked_ns });
    assert!(refusal.to_string().contains("target_quiesce_s = 10, and this mount would have 20"), "{refusal}");
}

#[test]
fn l10_a_dead_clients_files_are_free_when_its_requests_are_drained() {
    let Nodes { mut cluster, first, second, third, a, b } = nodes();
    let gone = Command::ClientGone { session: first, client: a };
    cluster.done(gone.clone());
    cluster.done(gone);
    assert_eq!(cluster.ask_refused(a, acquisition(&file(1))), Refusal::ClientEnded(a));
    // The node's next mount does not get what the last one may still be writing.
    let again = cluster.join(first, mount());
    let refusal = cluster.ask_refused(again, acquisition(&file(1)));
    assert!(matches!(&refusal, Refusal::Held { holder, .. } if holder.state == HolderState::Draining));
    let victim = Victim::Client(a);
    cluster.report(victim, first, Report::Fenced { method: FenceMethod::Quiesce });
    cluster.report(victim, second, Report::Drained);
    assert!(cluster.holder(&file(1)).is_some() && !cluster.is_free_for(b, 5, 0, 9));
    cluster.report(victim, third, Report::Drained);
    cluster.acquire(again, &file(1));
    assert!(cluster.is_free_for(b, 5, 0, 9));
}

#[test]
fn l10_a_client_that_is_draining_when_its_session_ends_is_fenced_with_it() {
    let Nodes { mut cluster, first, second, third, a, .. } = nodes();
    cluster.done(Command::ClientGone { session: first, client: a });
    cluster.end(first);
    // What was said about the client does not count for the session.
    cluster.report(Victim::Client(a), second, Report::Fenced { method: FenceMethod::Quiesce });
    for session in [second, third] {
        cluster.report(Victim::Session(first), session, Report::Drained);
    }
    assert_eq!(cluster.holder(&file(1)), Some(a));
    cluster.fence(Victim::Session(first), second);
    assert_eq!(cluster.holder(&file(1)), None);
}

#[test]
fn a_dead_vmhost_has_nothing_to_drain() {
    let Nodes { mut cluster, first, second, .. } = nodes();
    let host = cluster.join(first, ClientKind::Vmhost);
    let host_2 = cluster.join(second, ClientKind::Vmhost);
    cluster.acquire(host, &vm("web"));
    cluster.done(Command::ClientGone { session: first, client: host });
    cluster.acquire(host_2, &vm("web"));
}

fn breaking(target: BreakTarget, node: &str) -> Operation {
    Operation::Break { target, confirmed_node: node.to_owned(), operator: "root".to_owned(), wall_ns: 7 }
}

#[test]
fn l12_a_holding_is_broken_only_when_its_node_is_confirmed_and_that_is_logged() {
    let Nodes { mut cluster, first, second, a, b, .. } = nodes();
    let tool = cluster.join(second, ClientKind::Tool);
    let target = BreakTarget::Resource(file(1));
    let refusal = cluster.ask_refused(tool, breaking(target.clone(), "n1"));
    assert_eq!(refusal, Refusal::NothingToBreak(target.clone()), "the living are not broken");
    cluster.end(first);
    cluster.pass_s(60);
    for wrong in ["", "n2", "yes"] {
        let refusal = cluster.ask_refused(tool, breaking(target.clone(), wrong));
        assert!(matches!(&refusal, Refusal::Unconfirmed { node, .. } if node.as_str() == "n1"));
        let text = refusal.to_string();
        assert!(text.contains("n1") && text.contains(&a.to_string()) && text.contains("60 s ago"), "{text}");
    }
    assert_eq!(cluster.holder(&file(1)), Some(a));
    assert_eq!(cluster.ask(tool, breaking(target.clone(), "n1")), Reply::Broken { freed: 1 });
    cluster.acquire(b, &file(1));
    assert_eq!(cluster.holder(&COORDINATOR), Some(a), "nothing else was broken");
    let Answer::Breaks(breaks) = cluster.state.query(&Query::Breaks) else { panic!() };
    assert_eq!(breaks.len(), 1);
    let BreakRecord { operator, node, session, freed, wall_ns, .. } = &breaks[0];
    assert_eq!((operator.as_str(), node.as_str(), *session, *freed, *wall_ns), ("root", "n1", first, 1, 7));
}

#[test]
fn l12_a_whole_session_can_be_declared_fenced() {
    let Nodes { mut cluster, first, second, third, b, .. } = nodes();
    let host = cluster.join(first, ClientKind::Vmhost);
    cluster.acquire(host, &vm("web"));
    let target = BreakTarget::Session(first);
    assert!(matches!(cluster.ask_refused(b, breaking(target.clone(), "n1")), Refusal::NothingToBreak(_)));
    cluster.end(third);
    cluster.end(first);
    assert!(matches!(cluster.ask_refused(b, breaking(target.clone(), "n3")), Refusal::Unconfirmed { .. }));
    assert_eq!(cluster.ask(b, breaking(target, "n1")), Reply::Broken { freed: 3 });
    for resource in [file(1), COORDINATOR, vm("web")] {
        assert_eq!(cluster.holder(&resource), None);
    }
    cluster.fence(Victim::Session(third), second);
    cluster.report(Victim::Session(third), second, Report::Drained);
    assert!(cluster.state.fences.is_empty(), "who was declared fenced carries for nobody");
}
