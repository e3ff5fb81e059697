//! Places that are counted: so much at once in all, and so much of it for one agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::ProviderId;

/// One of the agent's own places, and one of those of all.
pub type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// The places of each agent that holds or awaits one.
#[derive(Default)]
pub struct Each(Mutex<BTreeMap<ProviderId, Weak<Semaphore>>>);

impl Each {
    /// Gives the places of one agent.
    pub fn of(&self, agent: ProviderId, places: usize) -> Arc<Semaphore> {
        let mut each = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        each.retain(|_, own| own.strong_count() > 0);
        if let Some(own) = each.get(&agent).and_then(Weak::upgrade) {
            return own;
        }
        let own = Arc::new(Semaphore::new(places));
        each.insert(agent, Arc::downgrade(&own));
        own
    }
}
