//go:build goexperiment.runtimesecret

package seal

import "runtime/secret"

// protect runs f, which handles key material, and erases what it leaves on
// stacks, in registers and in what it allocated and no longer needs.
func protect(f func()) { secret.Do(f) }
