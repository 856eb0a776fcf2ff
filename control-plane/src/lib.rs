//! The control plane: settings, command line and everything around the engine that is not on the path of a message.

pub mod cli;
pub mod secret;
pub mod serve;
pub mod settings;
pub mod token;
