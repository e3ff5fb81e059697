//! What a registry asks for in `WWW-Authenticate`, and where a token may be fetched.
//!
//! The realm is the registry's word, and it is where our password would go. The rule (security.md
//! A61): a token request, with or without credentials, goes only to
//! - the registry's own origin,
//! - the registry's host on another port, over https: the certificate proves the same owner,
//! - a host that a [`TokenHost`] pair allows for exactly this registry, over https.
//!
//! Everything else gets nothing, not even an anonymous request: a registry that needs another token
//! host is one line of configuration, a host that harvests tokens is not.

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::destination::{self, DestinationProblem, Reach};

/// The longest challenge that is parsed; real ones are below 300 bytes.
const CHALLENGE_LENGTH_MAX: usize = 8 << 10;

/// A token host that a registry may name although it is another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHost {
    /// The registry, as `host` or `host:port`.
    pub registry: String,
    /// The host that serves its tokens, as `host` or `host:port`, always over https.
    pub host: String,
    /// Whether it may see the credentials for the registry.
    pub credentials: bool,
}

impl TokenHost {
    /// Lists the pairs that are known to belong together.
    pub fn well_known() -> Vec<TokenHost> {
        let pair = |registry: &str, host: &str, credentials| TokenHost {
            registry: registry.to_owned(),
            host: host.to_owned(),
            credentials,
        };
        vec![
            pair("registry-1.docker.io", "auth.docker.io", true),
            pair("registry.gitlab.com", "gitlab.com", true),
            // A front for other registries; it has no accounts of its own.
            pair("lscr.io", "ghcr.io", false),
        ]
    }
}

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// Where tokens are made, not yet checked.
        realm: String,
        /// The name under which the token server knows the registry.
        service: Option<String>,
    },
}

/// Why a token may not be fetched from where the registry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum RealmProblem {
    #[error("is another host than the registry")]
    OtherHost,
    #[error("is plain http")]
    PlainHttp,
    #[error(transparent)]
    Destination(DestinationProblem),
}

impl Challenge {
    /// Picks the strongest challenge that we can answer: a token, else a password.
    pub fn from_headers(headers: &HeaderMap) -> Option<Challenge> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            if text.len() > CHALLENGE_LENGTH_MAX {
                continue;
            }
            let Ok(challenges) = http_auth::parse_challenges(text) else { continue };
            for challenge in challenges {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = parameter("realm") {
                        return Some(Challenge::Bearer { realm, service: parameter("service") });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
            }
        }
        basic
    }
}

/// A token server that passed the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// Where to ask.
    pub url: Url,
    /// Whether the registry's credentials may go there.
    pub credentials: bool,
}

impl Realm {
    /// Decides about the realm that the registry at `registry` named.
    pub fn check(realm: &str, registry: &Url, home: Reach, pairs: &[TokenHost]) -> Result<Realm, RealmProblem> {
        let bad = RealmProblem::Destination(DestinationProblem::NotHttp);
        let mut url = Url::parse(realm).map_err(|_| bad)?;
        url.set_fragment(None);
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad);
        }
        let same_host = url.host_str().is_some() && url.host_str() == registry.host_str();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RealmProblem::Destination(DestinationProblem::UserInfo));
        }
        // The registry's own origin is where the registry is: no question of reach.
        if url.origin() == registry.origin() {
            return Ok(Realm { url, credentials: true });
        }
        let pair = pairs.iter().find(|pair| names(&pair.registry, registry) && names(&pair.host, &url));
        if !same_host && pair.is_none() {
            return Err(RealmProblem::OtherHost);
        }
        if url.scheme() != "https" {
            return Err(RealmProblem::PlainHttp);
        }
        if !same_host {
            destination::check(&url, home).map_err(RealmProblem::Destination)?;
        }
        let credentials = same_host || pair.is_some_and(|pair| pair.credentials);
        Ok(Realm { url, credentials })
    }
}

/// Tells whether `host` (perhaps with a port) names the place of `url` exactly.
fn names(host: &str, url: &Url) -> bool {
    let Ok(wanted) = Url::parse(&format!("{}://{host}/", url.scheme())) else { return false };
    wanted.origin() == url.origin()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).expect(value));
        }
        Challenge::from_headers(&headers)
    }

    #[test]
    fn challenges_are_read_in_every_spelling() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(
            challenge(&["Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:x:pull,push\""]),
            bearer("https://a/t", Some("s"))
        );
        assert_eq!(challenge(&["bEARER REALM=\"https://a/\\\"t\""]), bearer("https://a/\"t", None));
        assert_eq!(challenge(&["Basic realm=x, Bearer realm=\"r\""]), bearer("r", None));
        assert_eq!(challenge(&["Basic realm=x", "Bearer realm=\"r\""]), bearer("r", None));
        assert_eq!(challenge(&["Negotiate", "Bearer service=\"s\""]), None);
        assert_eq!(challenge(&["Bearer realm=\"unterminated"]), None);
        assert_eq!(challenge(&[""]), None);
        assert_eq!(challenge(&[&format!("Bearer realm=\"{}\"", "x".repeat(9000))]), None);
    }

    #[test]
    fn a61_only_the_registry_itself_and_known_pairs_get_token_requests() {
        let check = |realm: &str, registry: &str, home| {
            let registry = Url::parse(registry).expect("registry");
            Realm::check(realm, &registry, home, &TokenHost::well_known()).map(|realm| realm.credentials)
        };
        let hub = |realm: &str| check(realm, "https://registry-1.docker.io/v2/", Reach::Public);
        assert_eq!(hub("https://auth.docker.io/token"), Ok(true));
        assert_eq!(hub("https://registry-1.docker.io/token"), Ok(true));
        assert_eq!(hub("http://auth.docker.io/token"), Err(RealmProblem::PlainHttp));
        assert_eq!(hub("https://auth.docker.io.evil/token"), Err(RealmProblem::OtherHost));
        assert_eq!(hub("https://auth.docker.io:444/token"), Err(RealmProblem::OtherHost));
        assert_eq!(hub("https://gitlab.com/jwt"), Err(RealmProblem::OtherHost));
        let own = |realm: &str| check(realm, "https://r.example:5000/v2/", Reach::Public);
        assert_eq!(own("https://r.example:5000/t"), Ok(true));
        assert_eq!(own("https://r.example/t"), Ok(true));
        assert_eq!(own("http://r.example:5000/t"), Err(RealmProblem::PlainHttp));
        assert_eq!(own("https://auth.docker.io/token"), Err(RealmProblem::OtherHost));
        assert_eq!(own("https://u@r.example:5000/t"), Err(RealmProblem::Destination(DestinationProblem::UserInfo)));
        for realm in ["file:///etc/passwd", "gopher://r.example/", "/token", "", "r.example"] {
            assert_eq!(own(realm), Err(RealmProblem::Destination(DestinationProblem::NotHttp)), "{realm}");
        }
        for host in ["127.0.0.1", "169.254.169.254", "[::1]", "[64:ff9b::7f00:1]", "10.0.0.1", "localhost"] {
            assert_eq!(own(&format!("https://{host}/t")), Err(RealmProblem::OtherHost), "{host}");
        }
        let local = |realm: &str| check(realm, "http://localhost:5000/v2/", Reach::Loopback);
        assert_eq!(local("http://localhost:5000/t"), Ok(true));
        assert_eq!(local("http://localhost:5001/t"), Err(RealmProblem::PlainHttp));
        assert_eq!(local("http://127.0.0.1:5000/t"), Err(RealmProblem::OtherHost));
        assert_eq!(check("https://ghcr.io/token", "https://lscr.io/v2/", Reach::Public), Ok(false));
    }
}
