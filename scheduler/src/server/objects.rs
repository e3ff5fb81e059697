//! Reading objects: one by id, many by page. Every read names the actor; what it does not see does not exist.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::gate::{Call, json as answer, page};
use super::problem::Problem;
use crate::core::State;
use crate::model::*;

/// Objects of a page when none is asked.
const PAGE: usize = 100;
/// Objects of a page at most.
pub const PAGE_MAX: usize = 1000;

/// Returns an object as its owner sees it: without hashes, with what is known beyond the record.
pub fn view(state: &State, key: &Key) -> Option<Value> {
    let mut value = match state.record(key)? {
        Record::Group(found) => {
            let used = state.used(found.id);
            let mut value = serde_json::to_value(&found).ok()?;
            value["used"] = json!(used);
            value
        }
        Record::User(found) => serde_json::to_value(&found).ok()?,
        Record::Token(found) => serde_json::to_value(&found).ok()?,
        Record::Join(found) => serde_json::to_value(&found).ok()?,
        Record::Provider(found) => {
            let mut value = serde_json::to_value(&found).ok()?;
            value["facts"] = json!(state.facts(found.id));
            value["reserved"] = json!(state.reserved(found.id));
            value
        }
        Record::Instance(found) => {
            let mut value = serde_json::to_value(&found).ok()?;
            if let Some(blocked) = state.blocked(found.id) {
                value["waiting"] = json!({ "sentence": blocked.sentence(), "explanation": blocked });
            }
            value
        }
        Record::Service(found) => serde_json::to_value(&found).ok()?,
        Record::Job(found) => serde_json::to_value(&found).ok()?,
        Record::Volume(found) => serde_json::to_value(&found).ok()?,
        Record::Secret(found) => serde_json::to_value(&found).ok()?,
        _ => return None,
    };
    if let Some(object) = value.as_object_mut() {
        object.remove("hash");
        object.remove("sealed");
    }
    Some(value)
}

/// Finds the group of an object; `None` for those that everybody may know.
fn owner(state: &State, key: &Key) -> Option<GroupId> {
    match key {
        Key::Group(id) => Some(*id),
        Key::User(id) => state.users.get(id).map(|found| found.group),
        Key::Token(id) => state.tokens.get(id).map(|found| found.group),
        Key::Join(id) => state.joins.get(id).map(|found| found.group),
        Key::Instance(id) => state.instances.get(id).map(|found| found.group),
        Key::Service(id) => state.services.get(id).map(|found| found.group),
        Key::Job(id) => state.jobs.get(id).map(|found| found.group),
        Key::Volume(id) => state.volumes.get(id).map(|found| found.group),
        Key::Secret(id) => state.secrets.get(id).map(|found| found.group),
        _ => None,
    }
}

/// Tells who asks.
pub fn actor(call: &Call) -> Result<Actor, Problem> {
    call.actor.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "token", "a valid bearer token is needed"))
}

/// Returns an object if the actor may know of it.
pub fn seen(state: &State, actor: Actor, key: &Key) -> Option<Value> {
    let public = matches!(key, Key::Provider(_));
    let seen = public || owner(state, key).is_some_and(|group| actor.sees(group));
    seen.then(|| view(state, key)).flatten()
}

/// Answers with one object.
pub async fn show(call: &Call, key: Key, what: &'static str, status: StatusCode) -> Result<Response, Problem> {
    let actor = actor(call)?;
    let found = call.site.desk.look(move |state, _, _| seen(state, actor, &key));
    let value = found.await?.ok_or_else(|| Problem::not_found(what))?;
    answer(status, &value)
}

/// What a list is asked for.
struct Ask {
    actor: Actor,
    after: u128,
    limit: usize,
    group: Option<GroupId>,
    state: Option<InstanceState>,
}

fn ask(call: &Call) -> Result<Ask, Problem> {
    let actor = actor(call)?;
    let limit = match call.query("limit") {
        None => PAGE,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| Problem::invalid("limit", format!("not a number between 1 and {PAGE_MAX}")))?,
    };
    let after = match call.query("after") {
        None => 0,
        Some(text) => {
            let id: InstanceId = text.parse().map_err(|_| Problem::invalid("after", "not a cursor"))?;
            id.get()
        }
    };
    let group: Option<GroupId> = match call.query("group") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| Problem::not_found("group"))?),
    };
    if group.is_some_and(|group| !actor.sees(group)) {
        return Err(Problem::not_found("group"));
    }
    let state = match call.query("state") {
        None => None,
        Some(text) => {
            let state = serde_json::from_value(Value::from(text));
            Some(state.map_err(|_| Problem::invalid("state", "not a state of instances"))?)
        }
    };
    // Whoever does not see everything sees the own group only, whatever was asked.
    let group = group.or((actor.role != Role::Admin).then_some(actor.group));
    Ok(Ask { actor, after, limit, group, state })
}

/// Takes a page out of an ordered list of ids.
fn take(
    state: &State,
    ask: &Ask,
    keys: impl Iterator<Item = (u128, Key, Option<GroupId>)>,
) -> (Vec<Value>, Option<String>) {
    let seen = keys.filter(|(_, _, group)| match (group, ask.group) {
        (None, _) => true,
        (Some(group), Some(wanted)) => *group == wanted && ask.actor.sees(*group),
        (Some(group), None) => ask.actor.sees(*group),
    });
    let mut found: Vec<(u128, Key)> = seen.map(|(id, key, _)| (id, key)).take(ask.limit + 1).collect();
    let more = found.len() > ask.limit;
    found.truncate(ask.limit);
    let next = found.last().filter(|_| more).map(|(id, _)| InstanceId::new(*id).to_string());
    (found.iter().filter_map(|(_, key)| view(state, key)).collect(), next)
}

macro_rules! lists {
    ($($list:ident $one:ident $what:literal $map:ident $id:ident $key:ident $group:expr;)*) => { $(
        /// Lists these.
        pub async fn $list(call: Call) -> Result<Response, Problem> {
            let ask = ask(&call)?;
            let (items, next) = call.site.desk.look(move |state, _, _| {
                let group: fn(&_) -> Option<GroupId> = $group;
                let range = state.$map.range((std::ops::Bound::Excluded($id::new(ask.after)), std::ops::Bound::Unbounded));
                let keys = range.map(|(id, found)| (id.get(), Key::$key(*id), group(found)));
                take(state, &ask, keys)
            }).await?;
            page(items, next)
        }
        /// Returns one of these.
        pub async fn $one(call: Call) -> Result<Response, Problem> {
            let id: $id = call.id($what)?;
            show(&call, Key::$key(id), $what, StatusCode::OK).await
        }
    )* };
}

lists! {
    groups group "group" groups GroupId Group |found: &Group| Some(found.id);
    users user "user" users UserId User |found: &User| Some(found.group);
    providers provider "provider" providers ProviderId Provider |_: &Provider| None;
    services service "service" services ServiceId Service |found: &Service| Some(found.group);
    jobs job "job" jobs JobId Job |found: &Job| Some(found.group);
    volumes volume "volume" volumes VolumeId Volume |found: &Volume| Some(found.group);
    secrets secret "secret" secrets SecretId Secret |found: &StoredSecret| Some(found.group);
}

/// Returns an instance.
pub async fn instance(call: Call) -> Result<Response, Problem> {
    let id: InstanceId = call.id("instance")?;
    show(&call, Key::Instance(id), "instance", StatusCode::OK).await
}

/// Lists instances.
pub async fn instances(call: Call) -> Result<Response, Problem> {
    let ask = ask(&call)?;
    let look = call.site.desk.look(move |state, _, _| {
        let from = (std::ops::Bound::Excluded(InstanceId::new(ask.after)), std::ops::Bound::Unbounded);
        let wanted =
            state.instances.range(from).filter(|(_, found)| ask.state.is_none_or(|state| state == found.state));
        let keys = wanted.map(|(id, found)| (id.get(), Key::Instance(*id), Some(found.group)));
        take(state, &ask, keys)
    });
    let (items, next) = look.await?;
    page(items, next)
}

/// Lists tokens; whoever is no administrator sees only the own ones.
pub async fn tokens(call: Call) -> Result<Response, Problem> {
    let ask = ask(&call)?;
    let look = call.site.desk.look(move |state, _, _| {
        let from = (std::ops::Bound::Excluded(TokenId::new(ask.after)), std::ops::Bound::Unbounded);
        let own = |token: &Token| {
            let mine = matches!(token.stands_for, TokenKind::User { user, .. } if Some(user) == ask.actor.user);
            mine || ask.actor.role == Role::Admin
        };
        let wanted = state.tokens.range(from).filter(|(_, found)| own(found));
        let keys = wanted.map(|(id, found)| (id.get(), Key::Token(*id), Some(found.group)));
        take(state, &ask, keys)
    });
    let (items, next) = look.await?;
    page(items, next)
}

/// Lists join tokens.
pub async fn joins(call: Call) -> Result<Response, Problem> {
    let ask = ask(&call)?;
    let look = call.site.desk.look(move |state, _, _| {
        let from = (std::ops::Bound::Excluded(JoinId::new(ask.after)), std::ops::Bound::Unbounded);
        let keys = state.joins.range(from).map(|(id, found)| (id.get(), Key::Join(*id), Some(found.group)));
        take(state, &ask, keys)
    });
    let (items, next) = look.await?;
    page(items, next)
}

/// Lists usage records. The cursor is a provider: a page ends between providers of one user at worst.
pub async fn usage(call: Call) -> Result<Response, Problem> {
    let ask = ask(&call)?;
    let look = call.site.desk.look(move |state, _, _| {
        let mut all: Vec<&UsageRecord> = state.usage.values().collect();
        all.retain(|found| ask.group.is_none_or(|group| group == found.group) && ask.actor.sees(found.group));
        all.sort_by_key(|found| (found.provider, found.group, found.user));
        all.retain(|found| found.provider.get() > ask.after);
        let mut cut = ask.limit.min(all.len());
        // A provider's records stay on one page, so that its id can be the cursor.
        while cut < all.len() && cut > 0 && all[cut].provider == all[cut - 1].provider {
            cut += 1;
        }
        let next = (cut < all.len()).then(|| all[cut - 1].provider.to_string());
        let items: Vec<Value> = all[..cut].iter().map(|found| json!(found)).collect();
        (items, next)
    });
    let (items, next) = look.await?;
    page(items, next)
}
