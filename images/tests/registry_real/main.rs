//! The registry client against Debian's real `docker-registry`, filled by skopeo and umoci.

mod cases;
mod proxy;
mod registry;
