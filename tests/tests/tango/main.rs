//! The Tango form: setuid root in an image like Tango's, called by an ordinary user. On a machine the
//! image is made in namespaces; scripts/test-tango takes the same tests into a default container.

mod contract;
mod job;
mod caller;
mod moving;
mod killed;
