//! The tools of the tests: the simulator and the private node.

mod bcc_sim;
mod private_node;
