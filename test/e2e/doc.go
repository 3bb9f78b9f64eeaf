// Package e2e has no code: its tests run the real binary as its users do, server, agent and command
// line as processes of their own, and look at everything that they leave behind.
package e2e
