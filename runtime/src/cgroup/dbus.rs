//! stub
/// x
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// x
    #[error("no bus")]
    None,
}
