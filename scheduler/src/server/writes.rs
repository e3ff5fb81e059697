//! Requests that change something: each reads a body, makes a wish of it, and shows the object.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::desk::DeskError;
use super::gate::{Call, json};
use super::objects::{actor, seen};
use super::problem::Problem;
use super::secret::{JOIN_PREFIX, Secret, TOKEN_PREFIX};
use super::shapes::*;
use crate::core::{Answer, State, Wish};
use crate::model::*;

/// Keeps a secret: its value is sealed before it reaches the core, and forgotten here.
pub async fn create_secret(mut call: Call) -> Result<Response, Problem> {
    let body: SecretNew = call.sensitive()?;
    let seal = call.site.seal.clone().ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, "no-key", "this scheduler was started without a key for secrets")
    })?;
    // A hash of a short value could be guessed from; a keyed one cannot.
    call.digest = seal.mark(&call.digest);
    let group = own(&call, body.group)?;
    let sealed = seal
        .close(group, &body.name, &body.value)
        .map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "entropy", "the kernel gives no random bytes"))?;
    done(&call, Wish::CreateSecret { group, name: body.name, sealed }, "secret", StatusCode::CREATED).await
}

async fn done(call: &Call, wish: Wish, what: &'static str, status: StatusCode) -> Result<Response, Problem> {
    let actor = actor(call)?;
    let look = move |answer: Result<Answer, DeskError>, state: &State| {
        answer.map(|answer| match answer {
            Answer::Object(key) => (seen(state, actor, &key), Answer::Object(key)),
            other => (None, other),
        })
    };
    match call.wish_then(wish, look).await?? {
        (found, Answer::Object(_)) => json(status, &found.ok_or_else(|| Problem::not_found(what))?),
        (_, Answer::Plan(explanation)) => json(StatusCode::OK, &explanation),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn own(call: &Call, group: Option<GroupId>) -> Result<GroupId, Problem> {
    Ok(group.unwrap_or(actor(call)?.group))
}

macro_rules! writes {
    ($($name:ident $what:literal $status:ident |$call:ident| $wish:expr;)*) => { $(
        #[doc = concat!("Asks the core; shows the ", $what, ".")]
        pub async fn $name($call: Call) -> Result<Response, Problem> {
            let wish = $wish;
            done(&$call, wish, $what, StatusCode::$status).await
        }
    )* };
}

writes! {
    create_group "group" CREATED |call| {
        let body: GroupNew = call.json()?;
        Wish::CreateGroup { name: body.name, quota: body.quota, weight: body.weight }
    };
    update_group "group" OK |call| {
        let body: GroupChange = call.json()?;
        Wish::UpdateGroup { id: call.id("group")?, quota: body.quota, weight: body.weight }
    };
    delete_group "group" NO_CONTENT |call| Wish::DeleteGroup { id: call.id("group")? };
    create_user "user" CREATED |call| {
        let body: UserNew = call.json()?;
        Wish::CreateUser { group: body.group, name: body.name, role: body.role }
    };
    set_keys "user" OK |call| {
        let body: Keys = call.json()?;
        Wish::SetKeys { id: call.id("user")?, keys: body.keys }
    };
    delete_user "user" NO_CONTENT |call| Wish::DeleteUser { id: call.id("user")? };
    delete_token "token" NO_CONTENT |call| Wish::DeleteToken { id: call.id("token")? };
    delete_join "join token" NO_CONTENT |call| Wish::DeleteJoin { id: call.id("join token")? };
    set_tier "provider" OK |call| {
        let body: TierChange = call.json()?;
        Wish::SetTier { id: call.id("provider")?, tier: body.tier }
    };
    drain "provider" OK |call| {
        let body: DrainNew = call.json()?;
        Wish::Drain { id: call.id("provider")?, within_ms: body.within_ms }
    };
    undrain "provider" OK |call| Wish::Undrain { id: call.id("provider")? };
    delete_provider "provider" NO_CONTENT |call| Wish::DeleteProvider { id: call.id("provider")? };
    create_instance "instance" CREATED |call| {
        let body: InstanceNew = call.json()?;
        Wish::CreateInstance { group: own(&call, body.group)?, name: body.name, spec: Box::new(body.spec) }
    };
    dry_run "instance" OK |call| {
        let body: InstanceNew = call.json()?;
        Wish::DryRun { group: own(&call, body.group)?, spec: Box::new(body.spec) }
    };
    halt_instance "instance" OK |call| Wish::HaltInstance { id: call.id("instance")? };
    resume_instance "instance" OK |call| Wish::ResumeInstance { id: call.id("instance")? };
    move_instance "instance" OK |call| {
        let body: InstanceMove = call.json()?;
        Wish::MoveInstance { id: call.id("instance")?, to: body.to }
    };
    delete_instance "instance" OK |call| Wish::DeleteInstance { id: call.id("instance")? };
    create_service "service" CREATED |call| {
        let body: ServiceNew = call.json()?;
        Wish::CreateService { group: own(&call, body.group)?, spec: Box::new(body.spec) }
    };
    update_service "service" OK |call| {
        let body: ServiceSpec = call.json()?;
        Wish::UpdateService { id: call.id("service")?, spec: Box::new(body) }
    };
    delete_service "service" OK |call| Wish::DeleteService { id: call.id("service")? };
    create_job "job" CREATED |call| {
        let body: JobNew = call.json()?;
        Wish::CreateJob { group: own(&call, body.group)?, spec: Box::new(body.spec) }
    };
    cancel_job "job" OK |call| Wish::CancelJob { id: call.id("job")? };
    create_volume "volume" CREATED |call| {
        let body: VolumeNew = call.json()?;
        Wish::CreateVolume { group: own(&call, body.group)?, name: body.name, size_bytes: body.size_bytes }
    };
    delete_secret "secret" NO_CONTENT |call| Wish::DeleteSecret { id: call.id("secret")? };
    delete_volume "volume" NO_CONTENT |call| Wish::DeleteVolume { id: call.id("volume")? };
}

fn generate(prefix: &'static str) -> Result<Secret, Problem> {
    Secret::generate(prefix)
        .map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "entropy", "the kernel gives no random bytes"))
}

/// Shows a secret, unless the core answered with an object that an earlier request made.
async fn shown(call: &Call, answer: Answer, secret: Secret) -> Result<Response, Problem> {
    let Answer::Object(key) = answer else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let hash = secret.hash();
    let (id, fresh) = call
        .site
        .desk
        .look(move |state, _, _| {
            let fresh = match &key {
                Key::Token(id) => state.tokens.get(id).is_some_and(|token| token.hash == hash),
                Key::Join(id) => state.joins.get(id).is_some_and(|join| join.hash == hash),
                _ => false,
            };
            (key.columns().1, fresh)
        })
        .await?;
    json(StatusCode::CREATED, &SecretShown { id, secret: fresh.then(|| secret.reveal()) })
}

/// Makes a token.
pub async fn create_token(call: Call) -> Result<Response, Problem> {
    let body: TokenNew = call.json()?;
    let secret = generate(TOKEN_PREFIX)?;
    let user = body.user.or(call.actor.and_then(|actor| actor.user));
    let user = user.ok_or_else(|| Problem::not_found("user"))?;
    let wish = Wish::CreateToken { user, role: body.role, ttl_ms: body.ttl_ms, hash: secret.hash() };
    let answer = call.wish(wish).await?;
    shown(&call, answer, secret).await
}

/// Makes a join token.
pub async fn create_join(call: Call) -> Result<Response, Problem> {
    let body: JoinNew = call.json()?;
    let secret = generate(JOIN_PREFIX)?;
    let group = own(&call, body.group)?;
    let (name, tier, ttl_ms) = (body.provider_name, body.tier, body.ttl_ms);
    let answer = call.wish(Wish::CreateJoin { group, name, tier, ttl_ms, hash: secret.hash() }).await?;
    shown(&call, answer, secret).await
}
