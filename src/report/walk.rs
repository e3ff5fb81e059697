//! The way from an error to its causes, through wrappers that hide them.

use std::error::Error;

use coracle_images::author::AuthorError;
use coracle_images::{LoginError, PullError, PushError};

use crate::engine::EngineError;
use crate::engine::image::ImageError;
use crate::oci::OciError;

/// Lists an error and its causes.
///
/// `#[error(transparent)]` forwards `source`, so a wrapped error would be skipped: those wrappers are
/// opened here.
pub fn walk<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |link| next(*link))
}

fn next<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    opened(error).or_else(|| error.source())
}

fn opened<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(oci) = error.downcast_ref::<OciError>() {
        return match oci {
            OciError::Cgroup(inner) => Some(inner),
            OciError::Ids(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(engine) = error.downcast_ref::<EngineError>() {
        return match engine {
            EngineError::Elsewhere(inner) => Some(inner),
            EngineError::Store(inner) => Some(inner),
            EngineError::Image(inner) => Some(inner),
            EngineError::IdMap(inner) => Some(inner),
            EngineError::Container(inner) => Some(inner),
            EngineError::Cgroup(inner) => Some(inner),
            EngineError::Limit(inner) => Some(inner),
            EngineError::Quota(inner) => Some(inner),
            EngineError::Network(inner) => Some(inner),
            EngineError::Spec(inner) => Some(inner),
            EngineError::Process(inner) => Some(inner),
            EngineError::User(inner) => Some(inner),
            EngineError::Volume(inner) => Some(inner),
            EngineError::Transfer(inner) => Some(inner),
            EngineError::Change(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(image) = error.downcast_ref::<ImageError>() {
        return Some(match image {
            ImageError::Reference(inner) => inner,
            ImageError::Pull(inner) => inner,
            ImageError::Unpack(inner) => inner,
            ImageError::Load(inner) => inner,
            ImageError::Save(inner) => inner,
            ImageError::Push(inner) => inner,
            ImageError::Author(inner) => inner,
        });
    }
    if let Some(push) = error.downcast_ref::<PushError>() {
        return match push {
            PushError::Registry(inner) => Some(inner),
            PushError::Credentials(inner) => Some(inner),
            PushError::Store(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(author) = error.downcast_ref::<AuthorError>() {
        return match author {
            AuthorError::Store(inner) => Some(inner),
            AuthorError::Ingest(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(LoginError::Registry(inner)) = error.downcast_ref::<LoginError>() {
        return Some(inner);
    }
    match error.downcast_ref::<PullError>()? {
        PullError::Registry(inner) => Some(inner),
        PullError::Credentials(inner) => Some(inner),
        PullError::Ingest(inner) => Some(inner),
        PullError::Store(inner) => Some(inner),
        _ => None,
    }
}
