//! The cost of a placement: how many providers are looked at, from a hundred to ten thousand of them.

use coracle_scheduler::core::{
    Action, Answer, Event, Options, Request, State, Wish, authenticate, candidates_wanted, step,
};
use coracle_scheduler::model::*;

fn name(text: &str) -> Name {
    text.parse().expect("name")
}

struct Pool {
    state: State,
    now: u64,
    admin: Option<Actor>,
}

impl Pool {
    fn step(&mut self, event: Event) -> Vec<Action> {
        // No time passes, so that nobody falls silent meanwhile.
        step(&mut self.state, self.now, event)
    }

    fn ask(&mut self, wish: Wish) -> Key {
        let request = Request { actor: self.admin, id: "r".to_owned(), key: None, digest: String::new(), wish };
        let actions = self.step(Event::Request { ticket: 1, request: Box::new(request) });
        for action in actions {
            if let Action::Answer(1, answer) = action {
                let Ok(Answer::Object(key)) = *answer else { panic!("{answer:?}") };
                return key;
            }
        }
        panic!("no answer")
    }

    fn new(providers: u64) -> Self {
        let mut pool = Self { state: State::new(Options::default(), [7; 32]), now: 1_000_000, admin: None };
        pool.ask(Wish::Bootstrap { group: name("ops"), user: name("root"), hash: "root".to_owned() });
        pool.admin = authenticate(&pool.state, pool.now, "root");
        let group = pool.admin.expect("admin").group;
        for number in 0..providers {
            let (provider, join) = (name(&format!("p{number}")), format!("j{number}"));
            let wish = Wish::CreateJoin {
                group,
                name: provider.clone(),
                tier: Tier::New,
                ttl_ms: 3_600_000,
                hash: join.clone(),
            };
            pool.ask(wish);
            let made = pool.ask(Wish::Join {
                join_hash: join,
                name: provider,
                hash: format!("a{number}"),
                key: String::new(),
            });
            let Key::Provider(id) = made else { panic!("{made:?}") };
            let zone = FactValue::Text(["eu", "us", "ap"][usize::try_from(number % 3).expect("small")].to_owned());
            let hello = Hello {
                protocol_min: PROTOCOL_MIN,
                protocol_max: PROTOCOL_MAX,
                incarnation: 1,
                boot_id: "b".to_owned(),
                capacity: Resources {
                    cpu_millis: 4_000 * (1 + number % 4),
                    memory_bytes: (4 << 30) * (1 + number % 4),
                    disk_bytes: 100 << 30,
                    ..Resources::default()
                },
                price: number % 7,
                accepting: true,
                drain_ms: None,
                facts: [("zone".to_owned(), FactReport { value: zone, age_ms: 0, ttl_ms: None })].into(),
                running: Vec::new(),
            };
            pool.step(Event::Hello { ticket: 2, provider: id, hello: Box::new(hello) });
        }
        pool
    }

    /// Places an instance; returns how many providers were looked at.
    fn place(&mut self, spec: InstanceSpec) -> usize {
        let group = self.admin.expect("admin").group;
        let Key::Instance(id) = self.ask(Wish::CreateInstance { group, name: None, spec: Box::new(spec) }) else {
            panic!("no instance")
        };
        let found = &self.state.instances[&id];
        let alloc = found.alloc.as_ref().unwrap_or_else(|| panic!("{:?}", self.state.blocked(id)));
        alloc.explanation.examined as usize
    }
}

#[test]
fn the_cost_of_a_placement_grows_no_faster_than_the_logarithm_of_the_pool() {
    for providers in [100, 1_000, 10_000] {
        let mut pool = Pool::new(providers);
        let wanted = candidates_wanted(usize::try_from(providers).expect("small"));
        for strategy in [Strategy::Spread, Strategy::Binpack, Strategy::Random, Strategy::Reliable, Strategy::Cheapest]
        {
            for constraint in [None, Some("zone==eu"), Some("node==p42")] {
                let mut sum = 0;
                for _ in 0..12 {
                    let resources = Resources {
                        cpu_millis: 150,
                        memory_bytes: 200 << 20,
                        disk_bytes: 1 << 30,
                        ..Resources::default()
                    };
                    let constraints = constraint.iter().map(|text| (*text).to_owned()).collect();
                    sum += pool.place(InstanceSpec {
                        image: "a".to_owned(),
                        resources,
                        strategy,
                        constraints,
                        ..InstanceSpec::default()
                    });
                    if constraint == Some("node==p42") && sum > 0 {
                        break;
                    }
                }
                // A third of the pool is in a zone: three looks for one match, and slack for what is full.
                assert!(
                    sum <= 12 * 5 * wanted,
                    "{providers} {strategy:?} {constraint:?}: {sum} looks for 12 placements"
                );
            }
        }
        assert_eq!(
            pool.state.counters().get("placements_scanned"),
            None,
            "{providers}: a placement looked at the whole pool"
        );
    }
}
