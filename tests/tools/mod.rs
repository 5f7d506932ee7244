//! What the tests stand on: the simulator and the private node.

mod bcc_sim;
mod private_node;
