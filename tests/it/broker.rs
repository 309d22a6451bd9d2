//! The contract that RabbitMQ and the embedded broker keep alike, and what only one of them can be brought into.

mod contract;
mod embedded;
mod faults;
mod rabbit;
