// Package devserver runs `broker serve --dev` as people do: the program, built
// from this tree, as a process of its own that a test may stop, pause or kill.
//
// It starts no process that it would not end: each has its own process group,
// and where the kernel can do it (Linux) the group's leader dies with the test
// binary even if that is killed itself.
package devserver
