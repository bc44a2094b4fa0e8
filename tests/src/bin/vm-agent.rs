//! `vm-agent`: what a machine of the vm lab runs, so that scripts can be run in it from outside.

fn main() -> anyhow::Result<()> {
    lab::vmlab::guest::serve()
}
