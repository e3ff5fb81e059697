//! The pool's mirror as a command sees it that the agent has started: pulls go through it unless the owner says no.
//!
//! The scheduler decides what runs here, within what the owner lets in, but it is not asked to be believed about what
//! a name means: that is the registry's to say, and the mirror's word counts only while the registry does not answer.
//! An owner who lets in some images only goes by their names, so there it never counts.

use coracle_images::registry::MirrorAccess;
use coracle_scheduler::agent::Membership;

use super::Shares;
use crate::env;

/// Gives the way to the mirror, if there may be one.
pub fn access() -> Option<MirrorAccess> {
    let folder = env::pool_mirror()?;
    let shares = Shares::read(&folder).ok().filter(|shares| !shares.direct)?;
    let reach = Membership::read(&folder).ok()?.reach(&folder).ok()?;
    let (plain, host) = match reach.scheduler.split_once("://")? {
        ("http", host) => (true, host),
        (_, host) => (false, host),
    };
    Some(MirrorAccess {
        host: host.to_owned(),
        plain,
        authorities: reach.authorities.into_bytes(),
        own: reach.own.map(String::into_bytes),
        token: reach.token,
        path: folder,
        names_tags: shares.images.is_empty(),
    })
}
