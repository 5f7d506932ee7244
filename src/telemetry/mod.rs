//! Metrics, health and logs.

mod directives;
mod health;
mod http;
mod job_log;
mod logs;
mod metrics;

pub use health::{CONNECTED, LaneState, Readiness};
pub use http::{MAX_CONNECTIONS, bind, serve};
pub use logs::{init_logs, is_coloured};
pub use metrics::{LaneMetrics, Metrics, ScheduleMetrics, SchedulerMetrics};
