//go:build !goexperiment.runtimesecret

package seal

// protect runs f, which handles key material. Built with
// GOEXPERIMENT=runtimesecret it leaves no copy on stacks, in registers or in
// what f allocated and no longer needs; without, it just runs f.
func protect(f func()) { f() }
