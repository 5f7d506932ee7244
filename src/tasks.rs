//! Waiting for tasks, of lanes and of jobs.

use tokio::task::{JoinError, JoinSet};

/// Waits until all of `tasks` have ended.
///
/// # Errors
/// The first one that a task ends with; the others run on.
pub async fn all<E: 'static>(tasks: &mut JoinSet<Result<(), E>>) -> Result<(), E> {
    while let Some(task) = tasks.join_next().await {
        ended(task)?;
    }
    Ok(())
}

/// What a task ended with; nothing, where it was aborted.
///
/// # Errors
/// The task's own.
///
/// # Panics
/// The task did, and whoever waits for it is to go down with it: what it had in hand the broker hands out again.
pub fn ended<E>(task: Result<Result<(), E>, JoinError>) -> Result<(), E> {
    match task {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}
