//! The OpenAPI document, made from the table of routes and the types.

use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, Paths, Required,
};

use utoipa::PartialSchema as _;
use utoipa::openapi::{RefOr, Schema};

use super::objects::PAGE_MAX;
use super::shapes;
use super::table::{Policy, Route};
use crate::model::{GroupId, InstanceState};

/// What the document leaves out.
const ABOUT: &str = "The routes below /v2/ are those of the OCI distribution specification for reading, for agents.";

/// Makes the document.
pub fn document(routes: &[Route]) -> OpenApi {
    let (mut paths, mut all) = (Paths::new(), Vec::new());
    shapes::problem(&mut all);
    for route in routes.iter().filter(|route| route.is_described()) {
        paths.add_path_operation(route.path, vec![method(route)], operation(route, &mut all));
    }
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let components = ComponentsBuilder::new().schemas_from_iter(all).security_scheme("bearer", bearer).build();
    OpenApiBuilder::new()
        .info(InfoBuilder::new().title("coracle scheduler").version("1").description(Some(ABOUT)).build())
        .paths(paths)
        .components(Some(components))
        .build()
}

fn method(route: &Route) -> HttpMethod {
    match route.method.as_str() {
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn text() -> utoipa::openapi::schema::Object {
    ObjectBuilder::new().schema_type(Type::String).build()
}

fn number(from: usize, to: Option<usize>) -> utoipa::openapi::schema::Object {
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(from));
    number.maximum(to).build()
}

/// Tells what a query parameter may be. Logs are read by number, objects by id.
fn query_schema(path: &str, query: &str) -> RefOr<Schema> {
    match (query, path) {
        ("limit", _) => number(1, Some(PAGE_MAX)).into(),
        ("after", "/v1/events" | "/v1/audit") => number(0, None).into(),
        ("after" | "group", _) => GroupId::schema(),
        ("state", _) => InstanceState::schema(),
        ("wait_ms", _) => number(0, None).into(),
        _ => text().into(),
    }
}

fn operation(route: &Route, all: &mut Vec<(String, RefOr<Schema>)>) -> utoipa::openapi::path::Operation {
    let mut operation = OperationBuilder::new().summary(Some(route.summary)).operation_id(Some(name(route)));
    if route.path.contains("{id}") {
        let id = ParameterBuilder::new().name("id").parameter_in(ParameterIn::Path).required(Required::True);
        operation = operation.parameter(id.schema(Some(text())).build());
    }
    for query in route.query {
        let parameter = ParameterBuilder::new().name(*query).parameter_in(ParameterIn::Query).required(Required::False);
        operation = operation.parameter(parameter.schema(Some(query_schema(route.path, query))).build());
    }
    if let Some(body) = route.body {
        let content = ContentBuilder::new().schema(Some(body(all))).build();
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    let (status, shape) = route.answer;
    let mut good = ResponseBuilder::new().description(route.summary);
    if let Some(shape) = shape {
        good = good.content("application/json", ContentBuilder::new().schema(Some(shape(all))).build());
    }
    operation = operation.response(status.to_string(), good.build());
    let problem = ContentBuilder::new().schema(Some(utoipa::openapi::Ref::from_schema_name("Problem"))).build();
    let refused = ResponseBuilder::new().description("refused").content("application/problem+json", problem).build();
    operation = operation.response("default", refused);
    if route.policy != Policy::Open {
        operation = operation.security(SecurityRequirement::new("bearer", Vec::<String>::new()));
    }
    operation.build()
}

/// Names an operation by method and path.
fn name(route: &Route) -> String {
    let path = route.path.trim_start_matches("/v1").replace(['{', '}'], "");
    let words = path.split(['/', '.', '-']).filter(|word| !word.is_empty());
    let start = route.method.as_str().to_ascii_lowercase();
    words.fold(start, |name, word| format!("{name}_{word}"))
}
