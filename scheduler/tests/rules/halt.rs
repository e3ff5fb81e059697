//! Instances that are stopped with their data kept, started again, and called by user, provider and number.

use coracle_scheduler::core::{Refusal, Wish};
use coracle_scheduler::model::*;

use crate::pool::{Pool, cpus};

fn on_one() -> InstanceSpec {
    InstanceSpec { constraints: vec!["node==one".to_owned()], ..cpus(1) }
}

#[test]
fn a_stopped_instance_keeps_its_place_and_starts_again() {
    let mut pool = Pool::new();
    let one = pool.provider("one", 4);
    pool.provider("two", 4);
    let id = pool.make(on_one());
    assert_eq!(pool.found(id).name.as_str(), "root-one-1", "user, provider, number");
    let other = pool.make(on_one());
    assert_eq!(pool.found(other).name.as_str(), "root-one-2");
    let last = |pool: &Pool| {
        let commands = coracle_scheduler::core::commands_after(&pool.state, one, 0);
        commands.into_iter().next_back().map(|found| found.command)
    };
    pool.report(id, Phase::Running { healthy: true });
    pool.ask(Wish::HaltInstance { id });
    assert_eq!(pool.state_of(id), InstanceState::Stopping);
    assert!(matches!(last(&pool), Some(Command::Halt { .. })), "{:?}", last(&pool));
    pool.report(id, Phase::Halted);
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Halted, Some(one)));

    // Its provider is lost: its data is there and nowhere else, so it waits.
    pool.pass(1_200_000, &[]);
    assert_eq!((pool.state_of(id), pool.on(id)), (InstanceState::Lost, Some(one)));
    let running = vec![pool.status(id, Phase::Halted)];
    pool.hello(one, running);
    assert_eq!(pool.state_of(id), InstanceState::Halted);

    pool.ask(Wish::ResumeInstance { id });
    assert!(matches!(last(&pool), Some(Command::Resume { .. })), "{:?}", last(&pool));
    // The agent never heard of it: what it says shows that, and it is told again.
    let running = vec![pool.status(id, Phase::Halted)];
    let commands = pool.hello(one, running);
    assert!(commands.iter().any(|found| matches!(found.command, Command::Resume { .. })), "{commands:?}");
    pool.report(id, Phase::Running { healthy: true });
    assert_eq!((pool.state_of(id), pool.found(id).epoch), (InstanceState::Running, 1));

    pool.ask(Wish::HaltInstance { id });
    pool.report(id, Phase::Halted);
    pool.ask(Wish::DeleteInstance { id });
    pool.report(id, Phase::Exited { code: Some(143), reason: "exited with 143".to_owned() });
    assert_eq!(pool.state_of(id), InstanceState::Stopped);
    assert!(matches!(pool.try_ask(Wish::ResumeInstance { id }), Err(Refusal::Conflict(_))), "it is gone");
    let third = pool.make(on_one());
    assert_eq!(pool.found(third).name.as_str(), "root-one-1", "the first free number");
}
