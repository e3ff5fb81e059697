//! Safe connections stay safe (A64), and unsafe ones are chosen, never fallen into.

use coracle_images::registry::{Fault, Proxies, RegistryError, TlsFault};
use coracle_images::{PullError, Reference};

use crate::server::{Identity, Reply, Server};
use crate::site::{Made, Place, Site};

fn name(host: &str, port: u16) -> Reference {
    format!("{host}:{port}/x:t").parse().expect("name")
}

fn tls_fault(error: PullError) -> TlsFault {
    match error {
        PullError::Registry(RegistryError::Tls { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn certs_d_trusts_an_authority_for_one_registry_only() {
    let identity = Identity::new(&["localhost", "127.0.0.1"]);
    let site = Site::tls(Made::small().content("t"), &identity);
    let port = site.server.port;
    let place = Place::new();
    place.trust(&format!("localhost:{port}"), &identity);
    let fault = tls_fault(place.refused(&name("127.0.0.1", port)));
    assert_eq!(fault, TlsFault::UnknownAuthority);
    place.pull(&name("localhost", port)).expect("trusted");
}

#[test]
fn a64_a_bad_certificate_is_no_reason_for_plain_http() {
    // Loopback and named insecure: even then, TLS that fails its checks is the end.
    let identity = Identity::new(&["localhost"]);
    let site = Site::tls(Made::small().content("t"), &identity);
    let port = site.server.port;
    let mut place = Place::new();
    place.options.insecure_registries = vec![format!("localhost:{port}"), format!("127.0.0.1:{port}")];
    assert_eq!(tls_fault(place.refused(&name("localhost", port))), TlsFault::UnknownAuthority);
    place.trust(&format!("127.0.0.1:{port}"), &identity);
    assert_eq!(tls_fault(place.refused(&name("127.0.0.1", port))), TlsFault::WrongName);
    assert!(site.server.seen().is_empty(), "no request may get through");
}

#[test]
fn a64_plain_http_is_only_for_registries_that_are_named_insecure() {
    let site = Site::new(Made::small().content("t"));
    let port = site.server.port;
    let mut place = Place::new();
    place.name_host("registry.example", "127.0.0.1");
    place.name_host("other.example", "127.0.0.1");
    place.options.insecure_registries = vec!["other.example".to_owned(), format!("other.example:{}", port ^ 1)];
    let error = place.refused(&name("registry.example", port));
    assert!(
        matches!(
            error,
            PullError::Registry(RegistryError::Tls { .. } | RegistryError::Unreachable { fault: Fault::Broken, .. })
        ),
        "{error:?}"
    );
    assert!(place.pull(&name("other.example", port)).is_err());
    assert!(site.server.seen().is_empty(), "nothing may be asked in the clear");
    place.options.insecure_registries = vec![format!("registry.example:{port}")];
    place.pull(&name("registry.example", port)).expect("named insecure");
}

#[test]
fn localhost_by_every_name_may_be_plain() {
    let site = Site::new(Made::small().content("t"));
    for host in ["localhost", "127.0.0.1", "registry.localhost"] {
        Place::new().pull(&name(host, site.server.port)).expect(host);
    }
}

#[test]
fn a64_a_broken_authority_file_is_an_error_that_names_it() {
    let identity = Identity::new(&["localhost"]);
    let server = Server::tls(&identity, |_| crate::server::Reply::new(200));
    let host = format!("localhost:{}", server.port);
    let place = Place::new();
    place.trust(&host, &identity);
    let path = place.dir.path().join("certs.d").join(&host).join("ca.crt");
    fs_err::write(&path, "not a certificate").expect("write");
    let error = place.refused(&name("localhost", server.port));
    let PullError::Registry(RegistryError::Certificates { source, .. }) = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("ca.crt"), "{source}");
    assert_eq!(server.connections(), 0);
}

#[test]
fn nobody_at_home_is_told_apart_from_everything_else() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        listener.local_addr().expect("address").port()
    };
    let error = Place::new().refused(&name("localhost", port));
    assert!(
        matches!(error, PullError::Registry(RegistryError::Unreachable { fault: Fault::Refused, .. })),
        "{error:?}"
    );
}

#[test]
fn f30_without_name_servers_the_name_is_the_problem() {
    let error = Place::new().refused(&"registry.example/x:t".parse().expect("name"));
    assert!(
        matches!(error, PullError::Registry(RegistryError::Unreachable { fault: Fault::NoNameServer, .. })),
        "{error:?}"
    );
}

#[test]
fn f30_a_proxy_is_used_except_for_this_machine() {
    let content = Made::small().content("t");
    let proxy = Server::plain(move |seen| match seen.method.as_str() {
        // No tunnels here, so that the registry has to be plain.
        "CONNECT" => Reply::new(405),
        _ => content.serve(seen),
    });
    let mut place = Place::new();
    let address = format!("http://user:secret@127.0.0.1:{}", proxy.port);
    place.options.proxies = Proxies { http: Some(address.clone()), https: Some(address), none: None };
    place.options.insecure_registries = vec!["registry.example".to_owned()];
    // The name resolves nowhere but at the proxy.
    let image = place.pull(&"registry.example/x:t".parse().expect("name")).expect("through the proxy");
    assert_eq!(place.read(&image, "hello"), b"hello\n");
    let asked = proxy.seen_at("http://registry.example/v2/x/manifests/t");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("proxy-authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    proxy.forget();
    let site = Site::new(Made::small().content("t"));
    place.pull(&site.image("x:t")).expect("directly");
    assert!(proxy.seen().is_empty());
    assert!(site.server.seen().iter().all(|seen| seen.header("proxy-authorization").is_none()));
    place.options.proxies.https = Some("http://us er:secret@[".to_owned());
    let error = place.pull(&"other.example/x:t".parse().expect("name")).expect_err("no proxy");
    assert!(matches!(error, PullError::Registry(RegistryError::Proxy { .. })), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn our_own_certificate_is_read_only_where_it_may_be_shown() {
    let identity = Identity::new(&["localhost"]);
    let site = Site::tls(Made::small().content("t"), &identity);
    let host = format!("localhost:{}", site.server.port);
    let mut place = Place::new();
    place.trust(&host, &identity);
    // One that cannot be used tells whether it is.
    let path = place.dir.path().join("certs.d").join(&host);
    fs_err::write(path.join("us.cert"), "not a certificate").expect("write");
    fs_err::write(path.join("us.key"), "not a key").expect("write");
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Certificates { .. })), "{error:?}");
    place.options.shows_certificate = false;
    place.pull(&site.image("x:t")).expect("the authority is trusted all the same");
}
