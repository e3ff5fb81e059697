//! What one or more steps of the core want written, the last word on each record only.

use std::collections::BTreeMap;

use crate::core::Action;
use crate::model::{Audit, Key, Notice, Record};

/// One transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// The record of each key; `None` removes it.
    pub records: BTreeMap<Key, Option<Box<Record>>>,
    /// Audit rows in order.
    pub audits: Vec<Audit>,
    /// Notices in order.
    pub notices: Vec<Notice>,
}

impl Batch {
    /// Takes what must be durable out of a step's actions and returns the rest, to be done after the commit.
    pub fn absorb(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Write(key, record) => drop(self.records.insert(key, Some(record))),
                Action::Erase(key) => drop(self.records.insert(key, None)),
                Action::Audit(row) => self.audits.push(*row),
                Action::Notice(notice) => self.notices.push(*notice),
                other => rest.push(other),
            }
        }
        rest
    }

    /// Tells whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.audits.is_empty() && self.notices.is_empty()
    }
}
