//! The control plane: settings, command line and everything around the engine that is not on the path of a message.

pub mod activation;
pub mod bridge;
pub mod cli;
pub mod events;
pub mod hooks;
pub mod http;
pub mod jwks;
pub mod lifecycle;
pub mod log;
pub mod metrics;
pub mod operator;
pub mod outbound;
pub mod pages;
pub mod relay;
pub mod reload;
pub mod secret;
pub mod serve;
pub mod settings;
pub mod signals;
pub mod store;
pub mod token;
pub mod watchdog;
