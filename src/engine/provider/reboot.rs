//! What a reboot of this machine means: what ran when it went down runs again, in the same allocation and with its data.
//!
//! An agent that ends orderly has written down every end that it saw. So what has no end in the ledger and does not run
//! after a reboot went down with the machine, whatever code its processes ended with when they were told to.

use std::path::Path;

use super::ledger::{Halt, Ledger, LedgerError};
use super::{Key, container_name, facts, secrets};
use crate::engine::container;
use crate::engine::containers;

/// The boot (proc_sys_kernel(5), random/boot_id) in which an agent worked last.
const FILE: &str = "boot";

/// Has everything started once more that went down with the machine. Killed on its way it is done again, and what was
/// marked stays marked.
pub fn take_in(root: &Path, folder: &Path, ledger: &mut Ledger) -> Result<(), LedgerError> {
    let now = facts::boot_id();
    let last: Option<String> = containers::read_json(&folder.join(FILE));
    if last.as_ref() == Some(&now) {
        return Ok(());
    }
    if last.is_some() {
        let keys: Vec<Key> = ledger.keys().collect();
        keys.into_iter().for_each(|key| resume(root, ledger, key));
    }
    Ok(container::publish_json(folder, FILE, &now, true)?)
}

fn resume(root: &Path, ledger: &mut Ledger, key: Key) {
    let Ok(container) = containers::find(root, &container_name(key)) else { return };
    let run = container.run();
    let Some(entry) = ledger.get(key) else { return };
    if run == 0 || container.status().is_active() || entry.end.is_some() || entry.stopping || entry.halt == Halt::Wanted
    {
        return;
    }
    // Its secrets were in memory only. As one that is halted it is told to start, and given them again.
    let halt = match secrets::are_lost(root, key, &entry.spec) {
        true => Halt::Wanted,
        false => Halt::Resuming { after_run: run },
    };
    ledger.change(key, |entry| {
        entry.begun = true;
        entry.halt = halt;
    });
}

#[cfg(test)]
mod tests {
    use coracle_scheduler::model::{InstanceId, InstanceSpec};

    use super::*;

    #[test]
    fn f15_another_boot_is_noticed_once_and_the_first_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&folder.path().join("allocations")).unwrap();
        let key = (InstanceId::new(7), 1);
        ledger.add(key, InstanceSpec { image: "busybox".into(), ..InstanceSpec::default() }, "ops", false).unwrap();
        for _ in 0..2 {
            take_in(folder.path(), folder.path(), &mut ledger).unwrap();
            let kept: String = containers::read_json(&folder.path().join(FILE)).unwrap();
            assert_eq!(kept, facts::boot_id());
            // There is no container yet: its making goes on as after a killed agent.
            assert_eq!(ledger.get(key).unwrap().halt, Halt::No);
            container::publish_json(folder.path(), FILE, &"another boot", true).unwrap();
        }
    }
}
