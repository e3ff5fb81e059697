//! Which health check a container gets: the person's flags over the image's HEALTHCHECK over docker's
//! defaults. Pure.

use std::time::Duration;

use serde::Deserialize;

use super::options::HealthOptions;
use super::record::HealthCheck;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Docker refuses shorter ones: a check is a process start.
const DURATION_MIN: Duration = Duration::from_millis(1);

/// Says why a health check was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HealthError {
    #[error("--no-healthcheck conflicts with --health-* options")]
    Conflict,
    #[error("{what} cannot be shorter than 1 ms")]
    TooShort { what: &'static str },
}

/// Is Docker's extension of the image configuration, `config.Healthcheck`; times in nanoseconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealth {
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl ImageHealth {
    /// Reads it out of an image's configuration.
    pub fn from_configuration(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Outer {
            config: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(rename = "Healthcheck")]
            health: Option<ImageHealth>,
        }
        serde_json::from_slice::<Outer>(text).ok()?.config?.health
    }

    /// Gives what is to be run; None for NONE, nothing, or what nobody defined.
    fn argv(&self) -> Option<Vec<String>> {
        match self.test.split_first()? {
            (kind, [line]) if kind == "CMD-SHELL" => Some(shell(line)),
            (kind, argv) if kind == "CMD" && !argv.is_empty() => Some(argv.to_vec()),
            _ => None,
        }
    }
}

/// Decides; None without any check.
pub fn decide(asked: &HealthOptions, image: Option<&ImageHealth>) -> Result<Option<HealthCheck>, HealthError> {
    let times = [asked.interval, asked.timeout, asked.start_period, asked.start_interval];
    if asked.disabled {
        let more = asked.command.is_some() || asked.retries.is_some() || times.iter().any(Option::is_some);
        return if more { Err(HealthError::Conflict) } else { Ok(None) };
    }
    for (what, time) in [
        ("--health-interval", asked.interval),
        ("--health-timeout", asked.timeout),
        ("--health-start-interval", asked.start_interval),
    ] {
        if time.is_some_and(|time| !time.is_zero() && time < DURATION_MIN) {
            return Err(HealthError::TooShort { what });
        }
    }
    let argv = match &asked.command {
        Some(line) if line == "none" => None,
        Some(line) => Some(shell(line)),
        None => image.and_then(ImageHealth::argv),
    };
    let Some(argv) = argv else { return Ok(None) };
    let of_image = |time: fn(&ImageHealth) -> i64| {
        let ns = u64::try_from(time(image?)).ok().filter(|ns| *ns > 0)?;
        Some(Duration::from_nanos(ns))
    };
    let given = |time: Option<Duration>| time.filter(|time| !time.is_zero());
    let retries = image.and_then(|image| u32::try_from(image.retries).ok());
    Ok(Some(HealthCheck {
        argv,
        interval: given(asked.interval).or_else(|| of_image(|health| health.interval)).unwrap_or(INTERVAL),
        timeout: given(asked.timeout).or_else(|| of_image(|health| health.timeout)).unwrap_or(TIMEOUT),
        start_period: asked.start_period.or_else(|| of_image(|health| health.start_period)).unwrap_or_default(),
        start_interval: given(asked.start_interval)
            .or_else(|| of_image(|health| health.start_interval))
            .or(Some(START_INTERVAL)),
        retries: asked.retries.or(retries).filter(|retries| *retries > 0).unwrap_or(RETRIES),
    }))
}

fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Option<ImageHealth> {
        ImageHealth::from_configuration(format!(r#"{{"config":{{"Healthcheck":{text}}}}}"#).as_bytes())
    }

    #[test]
    fn flags_win_over_the_image_over_the_defaults() {
        let image = image(r#"{"Test":["CMD-SHELL","exit 0"],"Interval":2000000000,"Retries":5}"#);
        let decided = decide(&HealthOptions::default(), image.as_ref()).unwrap().unwrap();
        assert_eq!(decided.argv, ["/bin/sh", "-c", "exit 0"]);
        assert_eq!((decided.interval, decided.timeout, decided.retries), (Duration::from_secs(2), TIMEOUT, 5));
        assert_eq!(decided.start_interval, Some(Duration::from_secs(5)));
        let flags = HealthOptions { retries: Some(1), command: Some("true".into()), ..HealthOptions::default() };
        let decided = decide(&flags, image.as_ref()).unwrap().unwrap();
        assert_eq!((decided.argv[2].as_str(), decided.retries, decided.interval.as_secs()), ("true", 1, 2));
    }

    #[test]
    fn no_check() {
        for text in [r#"{"Test":["NONE"]}"#, r#"{"Test":[]}"#, "{}", r#"{"Test":["CMD"]}"#, r#"{"Test":["WHAT","x"]}"#]
        {
            assert_eq!(decide(&HealthOptions::default(), image(text).as_ref()), Ok(None), "{text}");
        }
        assert!(ImageHealth::from_configuration(b"{}").is_none() && ImageHealth::from_configuration(b"x").is_none());
        let off = HealthOptions { disabled: true, ..HealthOptions::default() };
        assert_eq!(decide(&off, image(r#"{"Test":["CMD","true"]}"#).as_ref()), Ok(None));
        let both = HealthOptions { retries: Some(1), ..off };
        assert_eq!(decide(&both, None), Err(HealthError::Conflict));
    }
}
