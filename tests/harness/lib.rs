//! What the stories stand on: servers, proxies, worlds.
pub mod broker;
pub mod engine;
pub mod events;
pub mod inside;
pub mod logs;
pub mod outside;
pub mod proxy;
pub mod raw;
pub mod servers;
pub mod time;
pub mod world;
