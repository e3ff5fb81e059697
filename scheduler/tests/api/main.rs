//! The HTTP API as clients and attackers meet it, over real sockets.

mod agent;
mod faults;
mod hostile;
mod identity;
mod objects;
mod postgres;
mod support;
mod tenants;
