//! Which machine an image is for: operating system, architecture and variant.
//!
//! Names follow Go's GOOS and GOARCH, as the OCI image specification asks. A [`Platform`] is always
//! in normal form (`x86_64` became `amd64`, `arm64/v8` became `arm64`), so that two of them can be
//! compared; [`Platform::preference`] is the one place that knows which variant runs where.

use std::fmt;
use std::str::FromStr;

/// Longest part of a platform; the longest real one is `riscv64` or `dragonfly`.
const PART_LENGTH_MAX: usize = 32;

/// An operating system, an architecture and perhaps a variant of it, in normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A string is not `os/arch` or `os/arch/variant`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform \"{}\" is not os/arch or os/arch/variant", input.escape_debug())]
pub struct PlatformError {
    /// What was given.
    pub input: String,
}

impl Platform {
    /// Names the machine that this program was built for.
    pub fn host() -> Platform {
        Platform::from_parts("linux", std::env::consts::ARCH, host_variant())
    }

    /// Builds a platform from the fields of an image config or an index entry, whatever they hold.
    pub fn from_parts(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let os = os.to_ascii_lowercase();
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        let given = variant.unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) = normal_form(&architecture.to_ascii_lowercase(), &given);
        let variant = (!variant.is_empty()).then_some(variant);
        Platform { os, architecture, variant }
    }

    /// Gives the operating system in Go's spelling.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Gives the architecture in Go's spelling.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Gives the variant, where it is not the usual one of the architecture.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Says how well an image for `offered` suits this platform: higher is better, `None` is not at all.
    ///
    /// A variant runs what was built for lower ones (`arm/v7` runs `arm/v6`, `amd64/v3` runs
    /// `amd64`), never the other way round.
    pub fn preference(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.variant == offered.variant {
            return Some(u32::MAX);
        }
        let wanted = self.level()?;
        let level = offered.level()?;
        (level < wanted).then_some(level)
    }

    /// Gives the number in the variant (`v7` is 7); architectures without variants are level 1.
    fn level(&self) -> Option<u32> {
        match (&self.variant, self.architecture.as_str()) {
            (None, "arm64") => Some(80),
            (None, _) => Some(10),
            // `v8.2` is a step above `v8`.
            (Some(variant), _) => {
                let number = variant.strip_prefix('v')?;
                let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
                let (major, minor) = (major.parse::<u8>().ok()?, minor.parse::<u8>().ok()?);
                Some(u32::from(major) * 10 + u32::from(minor.min(9)))
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parts of an index entry come from a registry: keep escapes off the terminal.
        write!(f, "{}/{}", self.os.escape_debug(), self.architecture.escape_debug())?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", variant.escape_debug()),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let refuse = || PlatformError { input: input.chars().take(PART_LENGTH_MAX * 3).collect() };
        let parts: Vec<&str> = input.split('/').collect();
        if !parts.iter().all(|part| is_part(part)) {
            return Err(refuse());
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Platform::from_parts(os, architecture, None)),
            [os, architecture, variant] => Ok(Platform::from_parts(os, architecture, Some(variant))),
            _ => Err(refuse()),
        }
    }
}

fn is_part(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !part.is_empty() && part.len() <= PART_LENGTH_MAX && part.bytes().all(inner)
}

/// Maps the kernel's and Rust's names to Go's and drops a variant that says nothing.
fn normal_form(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
        ("x86" | "i386" | "i686" | "386", _) => ("386", ""),
        ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64", ""),
        ("aarch64" | "arm64", other) => ("arm64", other),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        ("powerpc64", "le") | ("ppc64el", _) => ("ppc64le", ""),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Gives the variant of the host; only 32-bit arm has builds that do not run on every host.
fn host_variant() -> Option<&'static str> {
    if cfg!(all(target_arch = "arm", target_feature = "v7")) {
        Some("v7")
    } else if cfg!(target_arch = "arm") {
        Some("v6")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect(text)
    }

    #[test]
    fn names_come_in_normal_form() {
        let pairs = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("windows/amd64", "windows/amd64"),
        ];
        for (given, expected) in pairs {
            assert_eq!(platform(given).to_string(), expected);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/am d64", "linux/\u{e4}"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variant_runs_lower_ones_only() {
        let best = |wanted: &str, offered: &[&str]| {
            let wanted = platform(wanted);
            let ranked = offered.iter().filter_map(|o| Some((wanted.preference(&platform(o))?, *o)));
            ranked.max().map(|(_, name)| name.to_owned())
        };
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64"];
        assert_eq!(best("linux/arm/v7", &arm).as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6", &arm).as_deref(), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm/v8", &arm).as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm64", &arm).as_deref(), Some("linux/arm64"));
        let amd = ["linux/amd64/v3", "linux/amd64"];
        assert_eq!(best("linux/amd64", &amd).as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/amd64/v4", &amd).as_deref(), Some("linux/amd64/v3"));
        assert_eq!(best("linux/amd64/v2", &amd).as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/s390x", &amd), None);
        assert_eq!(best("windows/amd64", &amd), None);
    }
}
