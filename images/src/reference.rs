//! Names of images in Docker's grammar.
//!
//! A [`Reference`] is parsed once at the edge and is strict: what it holds may be put into a URL
//! or compared with a credential without another look. It never guesses: a short name means
//! `docker.io/library`, nothing else.
//!
//! `oci_distribution::Reference` follows an older grammar: it has no IPv6 hosts, takes upper-case
//! digests, lets Unicode word characters into tags, and compiles a regular expression of several
//! milliseconds on first use, which is most of what a cached `coracle run` may cost. This parser is
//! checked against it (`agrees_with_the_library_on_ordinary_names`) and differs only there.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::digest::Digest;

/// The registry that a name without a host means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The name under which Docker's own tools store Docker Hub credentials; the same registry.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The host that answers the Distribution API for [`DEFAULT_REGISTRY`].
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// Repositories of [`DEFAULT_REGISTRY`] without a slash live here.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of a name that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest `host/repository`, the limit of the Distribution specification.
const NAME_LENGTH_MAX: usize = 255;
/// Longest tag, the limit of the Distribution specification.
const TAG_LENGTH_MAX: usize = 128;
/// Longest input looked at: name, tag, a sha512 digest and the separators fit.
const INPUT_LENGTH_MAX: usize = NAME_LENGTH_MAX + TAG_LENGTH_MAX + 140;
/// Longest DNS label (RFC 1035).
const LABEL_LENGTH_MAX: usize = 63;
/// How much of a bad name an error repeats.
const QUOTED_LENGTH_MAX: usize = 80;

/// A parsed image name: registry, repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image name {input} {problem}")]
pub struct ReferenceError {
    /// The name as given, shortened, with control characters escaped.
    pub input: String,
    /// What is wrong with it.
    pub problem: ReferenceProblem,
}

/// The rule of the grammar that a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum ReferenceProblem {
    #[error("is empty")]
    Empty,
    #[error("is too long")]
    TooLong,
    #[error("starts with a scheme; leave out http:// or https://")]
    Scheme,
    #[error("has an invalid registry host")]
    Host,
    #[error("has an invalid port")]
    Port,
    #[error("has an upper-case letter in the repository")]
    UpperCase,
    #[error("has an invalid repository")]
    Repository,
    #[error("has an invalid tag")]
    Tag,
    #[error("has an invalid digest")]
    Digest,
    #[error("is an image id, not a name")]
    Identifier,
}

impl Reference {
    /// Gives the registry as `host` or `host:port`; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Gives the `host[:port]` that answers the Distribution API for this registry.
    pub fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { &self.registry }
    }

    /// Gives the repository, `library/` included.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Gives the tag; a name with only a digest has none.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Gives the digest that pins the image.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Gives the name as people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let mut name = self.familiar_name();
        self.push_tag_and_digest(&mut name);
        name
    }

    /// Gives the familiar name without tag and digest, the REPOSITORY column of a listing.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        let short = self.repository.strip_prefix(OFFICIAL_PREFIX);
        match short {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// Gives the same repository pinned by `digest`, without a tag.
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Gives the same name without its digest, so that the tag decides.
    pub fn without_digest(&self) -> Reference {
        let tag = self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned());
        Reference { tag: Some(tag), digest: None, ..self.clone() }
    }

    fn push_tag_and_digest(&self, name: &mut String) {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = format!("{}/{}", self.registry, self.repository);
        self.push_tag_and_digest(&mut name);
        f.write_str(&name)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        parse(input).map_err(|problem| ReferenceError { input: quoted(input), problem })
    }
}

impl From<&Reference> for oci_distribution::Reference {
    fn from(reference: &Reference) -> Self {
        let registry = reference.registry.clone();
        let repository = reference.repository.clone();
        let digest = reference.digest.as_ref().map(ToString::to_string);
        match (reference.tag.clone(), digest) {
            (Some(tag), Some(digest)) => Self::with_tag_and_digest(registry, repository, tag, digest),
            (None, Some(digest)) => Self::with_digest(registry, repository, digest),
            (Some(tag), None) => Self::with_tag(registry, repository, tag),
            (None, None) => Self::with_tag(registry, repository, DEFAULT_TAG.to_owned()),
        }
    }
}

fn parse(input: &str) -> Result<Reference, ReferenceProblem> {
    if input.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    if input.len() > INPUT_LENGTH_MAX {
        return Err(ReferenceProblem::TooLong);
    }
    if input.contains("://") {
        return Err(ReferenceProblem::Scheme);
    }
    let (rest, digest) = match input.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|_| ReferenceProblem::Digest)?;
            (rest, Some(digest))
        }
        None => (input, None),
    };
    let (name, tag) = split_tag(rest)?;
    let (registry, path) = split_host(name)?;
    let repository = match registry.as_str() {
        DEFAULT_REGISTRY if !path.contains('/') => format!("{OFFICIAL_PREFIX}{path}"),
        _ => path.to_owned(),
    };
    check_repository(path)?;
    if registry.len() + 1 + repository.len() > NAME_LENGTH_MAX {
        return Err(ReferenceProblem::TooLong);
    }
    if name == path && is_identifier(path) {
        return Err(ReferenceProblem::Identifier);
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { registry, repository, tag, digest })
}

/// Splits the tag off: the part after the last colon that has no slash behind it.
fn split_tag(rest: &str) -> Result<(&str, Option<&str>), ReferenceProblem> {
    let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = rest[last_component..].find(':') else {
        return Ok((rest, None));
    };
    let (name, tag) = (&rest[..last_component + colon], &rest[last_component + colon + 1..]);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts_well = tag.bytes().next().is_some_and(is_word);
    let all_well = tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
    if !starts_well || !all_well || tag.len() > TAG_LENGTH_MAX {
        return Err(ReferenceProblem::Tag);
    }
    Ok((name, Some(tag)))
}

/// Splits `name` into registry and path; the first component is a host only when it looks like one.
fn split_host(name: &str) -> Result<(String, &str), ReferenceProblem> {
    let Some((first, path)) = name.split_once('/') else {
        return Ok((DEFAULT_REGISTRY.to_owned(), name));
    };
    let looks_like_host =
        first.contains(['.', ':', '[']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase());
    if !looks_like_host {
        return Ok((DEFAULT_REGISTRY.to_owned(), name));
    }
    check_host(first)?;
    let registry = if first == LEGACY_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { first };
    Ok((registry.to_owned(), path))
}

fn check_host(host_and_port: &str) -> Result<(), ReferenceProblem> {
    if let Some(rest) = host_and_port.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(ReferenceProblem::Host)?;
        address.parse::<Ipv6Addr>().map_err(|_| ReferenceProblem::Host)?;
        return match port.strip_prefix(':') {
            Some(port) => check_port(port),
            None if port.is_empty() => Ok(()),
            None => Err(ReferenceProblem::Host),
        };
    }
    let host = match host_and_port.split_once(':') {
        Some((host, port)) => {
            check_port(port)?;
            host
        }
        None => host_and_port,
    };
    if !host.split('.').all(is_label) {
        return Err(ReferenceProblem::Host);
    }
    // URL parsers read `0x7f.1` and `2130706433` as IPv4 addresses; only the dotted form is one here.
    let last = host.rsplit('.').next().unwrap_or(host);
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("0x"));
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(ReferenceProblem::Host);
    }
    Ok(())
}

fn check_port(port: &str) -> Result<(), ReferenceProblem> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    match port.parse::<u16>() {
        Ok(number) if digits && number != 0 => Ok(()),
        _ => Err(ReferenceProblem::Port),
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !label.is_empty()
        && label.len() <= LABEL_LENGTH_MAX
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_repository(path: &str) -> Result<(), ReferenceProblem> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceProblem::UpperCase);
    }
    if path.split('/').all(is_path_component) { Ok(()) } else { Err(ReferenceProblem::Repository) }
}

/// Tells whether `component` is lower-case words joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let edges_well = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
    edges_well
        && bytes.split(is_word).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

/// Tells whether a bare name would be taken for an image id (Docker refuses these as names too).
fn is_identifier(path: &str) -> bool {
    path.len() == 64 && path.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn quoted(input: &str) -> String {
    let mut text: String = input.chars().take(QUOTED_LENGTH_MAX).flat_map(char::escape_debug).collect();
    if input.chars().nth(QUOTED_LENGTH_MAX).is_some() {
        text.push('…');
    }
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(input: &str, canonical: &str, familiar: &str) {
        let reference: Reference = input.parse().expect(input);
        assert_eq!(reference.to_string(), canonical, "{input}");
        assert_eq!(reference.familiar(), familiar, "{input}");
        assert_eq!(canonical.parse::<Reference>().expect(canonical), reference);
        assert_eq!(familiar.parse::<Reference>().expect(familiar), reference);
    }

    fn refuse(input: &str, problem: ReferenceProblem) {
        match input.parse::<Reference>() {
            Ok(reference) => panic!("{input:?} was taken as {reference}"),
            Err(error) => assert_eq!(error.problem, problem, "{input:?}"),
        }
    }

    #[test]
    fn names_get_dockers_defaults() {
        check("busybox", "docker.io/library/busybox:latest", "busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36");
        check("user/app", "docker.io/user/app:latest", "user/app:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest");
        check("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest");
        check("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest");
        check("quay.io/a/b/c:t", "quay.io/a/b/c:t", "quay.io/a/b/c:t");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check("localhost", "docker.io/library/localhost:latest", "localhost:latest");
        check("host:5000/x", "host:5000/x:latest", "host:5000/x:latest");
        check("Host/x", "Host/x:latest", "Host/x:latest");
        check("127.0.0.1:80/x:y", "127.0.0.1:80/x:y", "127.0.0.1:80/x:y");
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check("[fe80::1]/x:1", "[fe80::1]/x:1", "[fe80::1]/x:1");
        check("xn--n3h.example/x", "xn--n3h.example/x:latest", "xn--n3h.example/x:latest");
        check("a/b_c.d-e--f__g", "docker.io/a/b_c.d-e--f__g:latest", "a/b_c.d-e--f__g:latest");
    }

    #[test]
    fn digests_pin_and_may_stand_beside_a_tag() {
        let pinned = format!("busybox@sha256:{HEX}");
        check(&pinned, &format!("docker.io/library/{pinned}"), &pinned);
        let both = format!("busybox:1@sha256:{HEX}");
        check(&both, &format!("docker.io/library/{both}"), &both);
        let reference: Reference = pinned.parse().expect("pinned");
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.without_digest().to_string(), "docker.io/library/busybox:latest");
    }

    #[test]
    fn c24_junk_is_refused() {
        use ReferenceProblem as P;
        refuse("", P::Empty);
        refuse("a//b", P::Repository);
        refuse("/a", P::Repository);
        refuse("a/", P::Repository);
        refuse("a/../b", P::Repository);
        refuse("..", P::Repository);
        refuse(".", P::Repository);
        refuse("a/./b", P::Repository);
        refuse("a___b", P::Repository);
        refuse("a..b", P::Repository);
        refuse("-a", P::Repository);
        refuse("a-", P::Repository);
        refuse("a b", P::Repository);
        refuse("a\nb", P::Repository);
        refuse("a%2fb", P::Repository);
        refuse("ä", P::Repository);
        refuse("quay.io/ä", P::Repository);
        refuse("Busybox", P::UpperCase);
        refuse("quay.io/Busybox", P::UpperCase);
        refuse("http://x", P::Scheme);
        refuse("https://quay.io/x", P::Scheme);
        refuse("host:99999/x", P::Port);
        refuse("host:0/x", P::Port);
        refuse("host:/x", P::Port);
        refuse("host:+80/x", P::Port);
        refuse("host:080/x", P::Port);
        refuse("quаy.io/x", P::Host); // the second letter is Cyrillic
        refuse("-a.io/x", P::Host);
        refuse("a..io/x", P::Host);
        refuse("a.io./x", P::Host);
        refuse("user@a.io/x", P::Digest);
        refuse("0x7f.1/x", P::Host);
        refuse("127.1/x", P::Host);
        refuse("1.2.3.256/x", P::Host);
        refuse("[::1/x", P::Host);
        refuse("[::1%eth0]:5/x", P::Host);
        refuse("[::1]x/x", P::Host);
        refuse("x:", P::Tag);
        refuse("x:.a", P::Tag);
        refuse("x:a:b", P::Tag);
        refuse("x:ä", P::Tag);
        refuse(&format!("x:{}", "t".repeat(129)), P::Tag);
        refuse("x@sha256:bad", P::Digest);
        refuse(&format!("x@sha256:{}", HEX.to_uppercase()), P::Digest);
        refuse(&format!("x@md5:{HEX}"), P::Digest);
        refuse(&format!("x@sha256:{HEX}@sha256:{HEX}"), P::Digest);
        refuse(HEX, P::Identifier);
        refuse(&"a".repeat(300), P::TooLong);
        refuse(&"a".repeat(1 << 20), P::TooLong);
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_above() {
        assert!(format!("x:{}", "t".repeat(128)).parse::<Reference>().is_ok());
        let prefix = "docker.io/library/".len();
        assert!("a".repeat(255 - prefix).parse::<Reference>().is_ok());
        refuse(&"a".repeat(256 - prefix), ReferenceProblem::TooLong);
    }

    #[test]
    fn an_error_shows_a_short_escaped_name() {
        let error = "a\u{1b}[31mb".parse::<Reference>().expect_err("escape");
        assert_eq!(error.to_string(), "image name \"a\\u{1b}[31mb\" has an invalid repository");
        let error = "x".repeat(4000).parse::<Reference>().expect_err("long");
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn agrees_with_the_library_on_ordinary_names() {
        let names = ["busybox", "a/b", "quay.io/a/b:1", "localhost:5000/x", "host:80/a/b/c:v1.2-3", "docker.io/x"];
        for name in names {
            let ours: Reference = name.parse().expect(name);
            let theirs: oci_distribution::Reference = name.parse().expect(name);
            assert_eq!(ours.to_string(), theirs.whole(), "{name}");
            assert_eq!(oci_distribution::Reference::from(&ours), theirs, "{name}");
        }
        for name in ["a//b", "Busybox", "x:", "a___b", "http://x"] {
            assert!(name.parse::<oci_distribution::Reference>().is_err(), "{name}");
        }
    }
}
