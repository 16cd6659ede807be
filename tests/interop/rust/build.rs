// Tells the program which compiler built it.
fn main() {
    let compiler = std::env::var("RUSTC").expect("cargo names the compiler");
    let printed = std::process::Command::new(compiler).arg("--version").output().expect("the compiler runs");
    let version = String::from_utf8(printed.stdout).expect("a version is text");
    let number = version.split_whitespace().nth(1).expect("rustc VERSION ...");
    println!("cargo:rustc-env=COMPILER={number}");
    println!("cargo:rerun-if-changed=build.rs");
}
