mod conversation;
mod failure;
mod garbage;
mod proxy;
mod refusal;
mod throughput;
mod world;
