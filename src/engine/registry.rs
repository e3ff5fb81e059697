//! What goes to a registry: images that are pushed, and who we are there.

use std::path::PathBuf;

use coracle_images::registry::TokenHost;
use coracle_images::{LoginError, Progress, PullOptions, Pushed, Reference, login, push};
use coracle_runtime::{IdMap, UserNs};

use super::image::ImageError;
use super::{Engine, EngineError, layer_space};
use crate::env;

/// Gives what the environment says about registries.
pub fn options(idmap: &IdMap) -> PullOptions {
    let mut options = PullOptions::new(layer_space(idmap));
    from_environment(&mut options);
    options
}

/// Adds what the environment says, over what it does not speak of.
pub fn from_environment(options: &mut PullOptions) {
    let said = PullOptions::from_environment(options.space.clone(), &env::value);
    options.login_files = said.login_files;
    options.proxies = said.proxies;
    options.certs_dirs = said.certs_dirs;
    options.insecure_registries = env::insecure_registries();
    options.token_hosts.extend(env::token_hosts().into_iter().map(|(registry, host)| TokenHost {
        registry,
        host,
        credentials: true,
    }));
}

impl Engine {
    /// Pushes an image, under its own name or another; gives the name and what is there now.
    pub fn push(
        &self,
        name: &str,
        destination: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<(Reference, Pushed), EngineError> {
        let image = self.store().find(name)?.ok_or_else(|| EngineError::UnknownImage(name.to_owned()))?;
        let target: Reference = match destination {
            Some(destination) => destination.parse().map_err(ImageError::from)?,
            // An id is no place; the grammar would take it for a repository of Docker Hub.
            None => match name.parse::<Reference>() {
                Ok(reference) if image.names.contains(&reference) => reference,
                _ => return Err(EngineError::NoDestination(name.to_owned())),
            },
        };
        let options = options(&self.idmap(UserNs::Auto)?);
        let pushed = push(self.store(), &image, &target, &options, progress).map_err(ImageError::from)?;
        Ok((target, pushed))
    }

    /// Gives every name of the repository that an image name means, for `push --all-tags`.
    pub fn tags_of(&self, name: &str) -> Result<Vec<String>, EngineError> {
        let wanted: Reference = name.parse().map_err(ImageError::from)?;
        let same = |other: &Reference| other.familiar_name() == wanted.familiar_name() && other.tag().is_some();
        let images = self.store().list()?;
        let names: Vec<String> =
            images.iter().flat_map(|image| &image.names).filter(|other| same(other)).map(Reference::familiar).collect();
        if names.is_empty() { Err(EngineError::UnknownImage(name.to_owned())) } else { Ok(names) }
    }
}

/// Checks credentials with their registry and keeps them; gives the file.
pub fn log_in(registry: &str, user: &str, password: &str) -> Result<PathBuf, LoginError> {
    let registry = login::registry_name(registry)?;
    let file = login::login_file(&env::value)?;
    let map = IdMap { uids: Vec::new(), gids: Vec::new() };
    login::verify(&registry, user, password, &options(&map))?;
    login::keep(&file, &registry, user, password)?;
    Ok(file)
}

/// Forgets credentials; gives the registry's name.
pub fn log_out(registry: &str) -> Result<String, LoginError> {
    let registry = login::registry_name(registry)?;
    login::forget(&login::login_file(&env::value)?, &registry)?;
    Ok(registry.registry().to_owned())
}
