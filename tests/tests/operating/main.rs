//! What an operator has in hand: what `make install` puts where, the systemd units, and the commands of the manual.

mod installed;
mod manual;
mod unit;
mod units;
