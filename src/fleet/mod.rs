//! The jobs that are submitted together: out of ids, lists, tables and whole jobs, named so that the same input names the same jobs
//! again.

mod defaults;
mod excerpt;
mod identity;
mod input;
mod lines;
mod message;
mod table;
mod text;
mod waves;

pub use self::defaults::{Defaults, check_times};
pub use self::identity::{Identity, Part, of_batch};
pub use self::input::{Checked, Format, Input, InputFault};
pub use self::message::{IN_FLIGHT, Item, announced, announcement, outgoing};
pub use self::waves::told;
