//! Outcomes of a job, and of a fleet of them.

mod ambiguity;
mod batch;
mod cloud_events;
mod confirm;
mod deadline;
mod fleet;
mod outcomes;
mod retries;
mod soak;
mod urgent;
