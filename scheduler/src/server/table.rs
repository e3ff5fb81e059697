//! The table of routes: path, policy, shapes and handler in one row.
//!
//! The router, the OpenAPI document and the policy test are made from it. A row without a policy does not compile; a
//! handler never runs before its policy was checked, because only [`super::gate`] calls handlers.

use std::future::Future;
use std::pin::Pin;

use axum::http::Method;
use axum::response::Response;
use utoipa::openapi::{RefOr, schema::Schema};

use super::gate::Call;
use super::problem::Problem;
use super::{agents, events, mirror, objects, pages, shapes, streams, writes};
use crate::model::Role;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Anybody; the answer says nothing about the pool's contents.
    Open,
    /// Whoever shows an unused join token, which the handler redeems.
    Join,
    /// A provider's own token, and nobody else's.
    Agent,
    /// A provider's own token where its certificate may have ended; the handler looks at the key.
    Renew,
    /// A user's token with at least this role; what it may see is decided by the core.
    User(Role),
}

/// What a handler returns.
pub type Outcome = Pin<Box<dyn Future<Output = Result<Response, Problem>> + Send>>;

/// A schema with the schemas it refers to.
pub type Shape = fn(&mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema>;

/// One route.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path with `{parameters}`.
    pub path: &'static str,
    /// Who may call it.
    pub policy: Policy,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Names of query parameters.
    pub query: &'static [&'static str],
    /// The shape of the body.
    pub body: Option<Shape>,
    /// The status and shape of the answer.
    pub answer: (u16, Option<Shape>),
    /// What runs.
    pub handler: fn(Call) -> Outcome,
}

impl Route {
    /// Tells whether the OpenAPI document has it: the mirror's are described by the OCI distribution specification, and
    /// OpenAPI has no path parameter with slashes in it.
    pub fn is_described(&self) -> bool {
        !self.path.starts_with(mirror::PREFIX)
    }
}

macro_rules! routes {
    ($($method:ident $path:literal $policy:expr, $summary:literal, [$($query:literal)*], $body:expr, $status:literal $answer:expr, $handler:path;)*) => {
        /// Every route there is.
        pub fn routes() -> Vec<Route> {
            vec![$(Route {
                method: Method::$method,
                path: $path,
                policy: $policy,
                summary: $summary,
                query: &[$($query),*],
                body: $body,
                answer: ($status, $answer),
                handler: |call| Box::pin($handler(call)),
            }),*]
        }
    };
}

use Policy::{Agent, Join, Open, Renew, User};
use Role::{Admin, Member, Reader};
use shapes as s;

routes! {
    GET "/healthz" Open, "Tells that the process lives", [], None, 200 None, pages::healthz;
    GET "/readyz" Open, "Tells that this scheduler leads and can write", [], None, 200 None, pages::readyz;
    GET "/v1/openapi.json" Open, "Returns this document", [], None, 200 None, pages::openapi;
    GET "/metrics" User(Admin), "Returns metrics in Prometheus' text format", [], None, 200 None, pages::metrics;
    GET "/v1/whoami" User(Reader), "Returns who the token stands for", [], None, 200 Some(s::whoami), pages::whoami;

    GET "/v1/groups" User(Reader), "Lists groups", ["after" "limit"], None, 200 Some(s::page), objects::groups;
    POST "/v1/groups" User(Admin), "Makes a group", [], Some(s::group_new), 201 Some(s::group), writes::create_group;
    GET "/v1/groups/{id}" User(Reader), "Returns a group", [], None, 200 Some(s::group), objects::group;
    PUT "/v1/groups/{id}" User(Admin), "Changes quota and weight", [], Some(s::group_change), 200 Some(s::group), writes::update_group;
    DELETE "/v1/groups/{id}" User(Admin), "Removes an empty group", [], None, 204 None, writes::delete_group;

    GET "/v1/users" User(Reader), "Lists users", ["after" "limit" "group"], None, 200 Some(s::page), objects::users;
    POST "/v1/users" User(Admin), "Makes a user", [], Some(s::user_new), 201 Some(s::user), writes::create_user;
    GET "/v1/users/{id}" User(Reader), "Returns a user", [], None, 200 Some(s::user), objects::user;
    PUT "/v1/users/{id}/keys" User(Reader), "Replaces a user's SSH keys", [], Some(s::keys), 200 Some(s::user), writes::set_keys;
    DELETE "/v1/users/{id}" User(Admin), "Removes a user and its tokens", [], None, 204 None, writes::delete_user;

    GET "/v1/tokens" User(Reader), "Lists tokens, without their secrets", ["after" "limit" "group"], None, 200 Some(s::page), objects::tokens;
    POST "/v1/tokens" User(Reader), "Makes a token; its secret is in this answer only", [], Some(s::token_new), 201 Some(s::secret), writes::create_token;
    DELETE "/v1/tokens/{id}" User(Reader), "Revokes a token", [], None, 204 None, writes::delete_token;

    GET "/v1/joins" User(Member), "Lists unused join tokens, without their secrets", ["after" "limit" "group"], None, 200 Some(s::page), objects::joins;
    POST "/v1/joins" User(Member), "Makes a join token; its secret is in this answer only", [], Some(s::join_new), 201 Some(s::secret), writes::create_join;
    DELETE "/v1/joins/{id}" User(Member), "Removes a join token", [], None, 204 None, writes::delete_join;

    GET "/v1/providers" User(Reader), "Lists providers", ["after" "limit" "group"], None, 200 Some(s::page), objects::providers;
    GET "/v1/providers/{id}" User(Reader), "Returns a provider with its facts", [], None, 200 Some(s::provider), objects::provider;
    PUT "/v1/providers/{id}/tier" User(Admin), "Says how far a provider is trusted", [], Some(s::tier), 200 Some(s::provider), writes::set_tier;
    POST "/v1/providers/{id}/drain" User(Member), "Empties a provider", [], Some(s::drain), 200 Some(s::provider), writes::drain;
    DELETE "/v1/providers/{id}/drain" User(Member), "Lets new work in again", [], None, 200 Some(s::provider), writes::undrain;
    DELETE "/v1/providers/{id}" User(Member), "Forgets a provider; what it held is placed anew", [], None, 204 None, writes::delete_provider;

    GET "/v1/instances" User(Reader), "Lists instances", ["after" "limit" "group" "state"], None, 200 Some(s::page), objects::instances;
    POST "/v1/instances" User(Member), "Asks for an instance", [], Some(s::instance_new), 201 Some(s::instance), writes::create_instance;
    POST "/v1/instances/dry-run" User(Reader), "Tells where an instance would be placed", [], Some(s::instance_new), 200 Some(s::explanation), writes::dry_run;
    GET "/v1/instances/{id}" User(Reader), "Returns an instance", [], None, 200 Some(s::instance), objects::instance;
    DELETE "/v1/instances/{id}" User(Member), "Ends an instance and removes its data", [], None, 200 Some(s::instance), writes::delete_instance;
    POST "/v1/instances/{id}/stop" User(Member), "Stops an instance and keeps its data", [], None, 200 Some(s::instance), writes::halt_instance;
    POST "/v1/instances/{id}/start" User(Member), "Starts an instance again that was stopped", [], None, 200 Some(s::instance), writes::resume_instance;

    POST "/v1/instances/{id}/move" User(Member), "Moves an instance to another provider with its data", [], Some(s::instance_move), 200 Some(s::instance), writes::move_instance;

    POST "/v1/instances/{id}/streams" User(Member), "Leaves HTTP for a stream to an instance that runs", [], Some(s::stream_new), 101 None, streams::open;

    GET "/v1/services" User(Reader), "Lists services", ["after" "limit" "group"], None, 200 Some(s::page), objects::services;
    POST "/v1/services" User(Member), "Makes a service", [], Some(s::service_new), 201 Some(s::service), writes::create_service;
    GET "/v1/services/{id}" User(Reader), "Returns a service", [], None, 200 Some(s::service), objects::service;
    PUT "/v1/services/{id}" User(Member), "Changes a service; a new template is rolled out", [], Some(s::service_spec), 200 Some(s::service), writes::update_service;
    DELETE "/v1/services/{id}" User(Member), "Removes a service and its instances", [], None, 200 Some(s::service), writes::delete_service;

    GET "/v1/jobs" User(Reader), "Lists jobs", ["after" "limit" "group"], None, 200 Some(s::page), objects::jobs;
    POST "/v1/jobs" User(Member), "Makes a job", [], Some(s::job_new), 201 Some(s::job), writes::create_job;
    GET "/v1/jobs/{id}" User(Reader), "Returns a job", [], None, 200 Some(s::job), objects::job;
    DELETE "/v1/jobs/{id}" User(Member), "Cancels a job", [], None, 200 Some(s::job), writes::cancel_job;

    GET "/v1/volumes" User(Reader), "Lists volumes", ["after" "limit" "group"], None, 200 Some(s::page), objects::volumes;
    POST "/v1/volumes" User(Member), "Makes a volume", [], Some(s::volume_new), 201 Some(s::volume), writes::create_volume;
    GET "/v1/volumes/{id}" User(Reader), "Returns a volume", [], None, 200 Some(s::volume), objects::volume;
    DELETE "/v1/volumes/{id}" User(Member), "Removes a volume nobody uses", [], None, 204 None, writes::delete_volume;

    GET "/v1/secrets" User(Reader), "Lists secrets, without their values", ["after" "limit" "group"], None, 200 Some(s::page), objects::secrets;
    POST "/v1/secrets" User(Member), "Keeps a secret, sealed; no answer shows its value", [], Some(s::secret_new), 201 Some(s::secret_view), writes::create_secret;
    GET "/v1/secrets/{id}" User(Reader), "Returns a secret, without its value", [], None, 200 Some(s::secret_view), objects::secret;
    DELETE "/v1/secrets/{id}" User(Member), "Removes a secret nobody uses", [], None, 204 None, writes::delete_secret;

    GET "/v1/usage" User(Reader), "Lists what was used, by group, user and provider", ["after" "limit" "group"], None, 200 Some(s::page), objects::usage;
    GET "/v1/events" User(Reader), "Lists events, or streams them to who accepts text/event-stream", ["after" "limit"], None, 200 Some(s::page), events::events;
    GET "/v1/audit" User(Admin), "Lists audit rows", ["after" "limit" "group"], None, 200 Some(s::page), events::audit;

    POST "/v1/join" Join, "Joins a machine by a join token", [], Some(s::join_body), 201 Some(s::joined), agents::join;
    POST "/v1/agent/certificate" Renew, "Signs the agent's key for another day", [], Some(s::certificate_new), 200 Some(s::certificate), agents::certificate;
    POST "/v1/agent/hello" Agent, "Opens a session with a full report", [], Some(s::hello), 200 Some(s::hello_reply), agents::hello;
    POST "/v1/agent/sync" Agent, "Reports changes and fetches commands", ["wait_ms"], Some(s::sync), 200 Some(s::sync_reply), agents::sync;
    GET "/v2/" Agent, "Tells that there is a mirror of a registry", ["ns"], None, 200 None, mirror::root;
    GET "/v2/{*id}" Agent, "Returns a manifest or a blob of a registry that is mirrored", ["ns"], None, 200 None, mirror::content;
    POST "/v1/agent/moves/{id}" Agent, "Leaves HTTP for the data of an instance that moves to this provider", [], None, 101 None, streams::data;
    POST "/v1/agent/streams/{id}" Agent, "Leaves HTTP for the agent's end of a stream", [], None, 101 None, streams::dial;
}
