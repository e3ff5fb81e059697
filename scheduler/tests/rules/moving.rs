//! Moves with data: until the new provider has all of it, the old one is what counts.

use coracle_scheduler::core::{Refusal, Wish, commands_after};
use coracle_scheduler::model::*;

use crate::pool::{Pool, cpus};

/// Makes an instance that is on its way from `one` to `two` and ran before.
fn under_way() -> (Pool, InstanceId, ProviderId, ProviderId) {
    let mut pool = Pool::new();
    let one = pool.provider("one", 4);
    let id = pool.make(cpus(1));
    pool.report(id, Phase::Running { healthy: true });
    let two = pool.provider("two", 4);
    pool.ask(Wish::MoveInstance { id, to: None });
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Stopping, Some(one)), "it stands still first");
    pool.report(id, Phase::Halted);
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Placed, Some(two)));
    (pool, id, one, two)
}

fn last(pool: &Pool, provider: ProviderId) -> Option<Command> {
    commands_after(&pool.state, provider, 0).into_iter().next_back().map(|found| found.command)
}

fn stops(pool: &Pool, provider: ProviderId) -> bool {
    commands_after(&pool.state, provider, 0).iter().any(|found| matches!(found.command, Command::Stop { .. }))
}

#[test]
fn the_source_is_ended_when_the_data_is_there_and_not_before() {
    let (mut pool, id, one, two) = under_way();
    assert!(matches!(last(&pool, two), Some(Command::Start { moved: true, .. })), "{:?}", last(&pool, two));
    pool.report(id, Phase::Pulling);
    assert_eq!(pool.state_of(id), InstanceState::Pulling);
    // The source says again that it stands still, by a full report too: nothing is stopped and nothing started.
    pool.report_of(id, one, 1, Phase::Halted);
    let halted = AllocStatus { instance: id, epoch: 1, phase: Phase::Halted, usage: Usage::default(), disk: None };
    assert!(pool.hello(one, vec![halted]).is_empty());
    assert!(matches!(pool.try_ask(Wish::MoveInstance { id, to: None }), Err(Refusal::Conflict(_))), "once at a time");
    pool.report(id, Phase::Halted);
    assert!(stops(&pool, one));
    assert!(matches!(last(&pool, two), Some(Command::Resume { epoch: 2, .. })), "{:?}", last(&pool, two));
    pool.report(id, Phase::Running { healthy: true });
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Running, Some(two)));
    pool.report_of(id, one, 1, Phase::Exited { code: None, reason: String::new() });
    assert_eq!(pool.state.reserved(one), Resources::default());
}

#[test]
fn whatever_keeps_the_data_from_coming_leads_back_to_it() {
    // The new provider refuses, or loses what it had.
    let (mut pool, id, one, two) = under_way();
    pool.report(id, Phase::Exited { code: None, reason: "its image is another one here".to_owned() });
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Placed, Some(one)), "it starts where it was");
    assert!(matches!(last(&pool, one), Some(Command::Resume { epoch: 1, .. })), "{:?}", last(&pool, one));
    assert!(!stops(&pool, one));
    assert_eq!(pool.state.reserved(two), Resources::default());
    pool.report(id, Phase::Running { healthy: true });
    assert_eq!((pool.state_of(id), pool.found(id).epoch), (InstanceState::Running, 2), "no number is used twice");

    // It is lost for good.
    let (mut pool, id, one, two) = under_way();
    pool.report(id, Phase::Pulling);
    pool.pass(1_200_000, &[one]);
    assert_eq!(pool.on(id), Some(one));
    assert!(!stops(&pool, one));
    let late = AllocStatus { instance: id, epoch: 2, phase: Phase::Halted, usage: Usage::default(), disk: None };
    let told = pool.hello(two, vec![late]);
    assert!(told.iter().any(|found| matches!(found.command, Command::Stop { epoch: 2, .. })), "{told:?}");
    let (mut pool, id, one, two) = under_way();
    pool.try_ask(Wish::DeleteProvider { id: two }).expect("removed");
    assert_eq!(pool.on(id), Some(one));

    // An agent that knows of no moves begins without the data: it is ended, and nothing is lost.
    let (mut pool, id, one, two) = under_way();
    pool.report(id, Phase::Running { healthy: true });
    assert!(stops(&pool, two) && !stops(&pool, one));
    pool.exit(id, 143);
    assert_eq!(pool.on(id), Some(one));
    assert!(pool.found(id).stop.is_none());
}

#[test]
fn what_ends_on_its_way_leaves_nothing_and_what_has_no_room_stays() {
    let (mut pool, id, one, two) = under_way();
    pool.ask(Wish::DeleteInstance { id });
    pool.exit(id, 143);
    assert_eq!(pool.state_of(id), InstanceState::Stopped);
    assert!(stops(&pool, one) && stops(&pool, two));

    // The data itself is lost with its machine: that is said, and nothing begins as if it had never been.
    let (mut pool, id, one, _) = under_way();
    pool.try_ask(Wish::DeleteProvider { id: one }).expect("removed");
    pool.report(id, Phase::Exited { code: None, reason: "its data cannot be had".to_owned() });
    assert_eq!(pool.state_of(id), InstanceState::Failed);
    assert!(pool.found(id).reason.contains("lost with the provider"), "{}", pool.found(id).reason);

    let mut pool = Pool::new();
    let one = pool.provider("one", 4);
    let id = pool.make(cpus(1));
    pool.report(id, Phase::Running { healthy: true });
    pool.ask(Wish::MoveInstance { id, to: None });
    pool.report(id, Phase::Halted);
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Placed, Some(one)), "it starts again where it is");
    assert!(pool.found(id).reason.starts_with("it cannot move"), "{}", pool.found(id).reason);
    assert!(matches!(pool.try_ask(Wish::MoveInstance { id, to: Some(one) }), Err(Refusal::Conflict(_))));
}
