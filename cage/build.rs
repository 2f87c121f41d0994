//! Puts functions of cage-vmm's own before two of libc's, with the linker's --wrap, which works for shared and static libc alike
//! (cage/src/bin/cage-vmm/sys.rs says what for).

fn main() {
    for function in ["pthread_create", "pthread_setname_np"] {
        println!("cargo::rustc-link-arg-bin=cage-vmm=-Wl,--wrap={function}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
