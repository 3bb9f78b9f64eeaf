//go:build !planted_earlyack

package ledger

// earlyAck is a planted defect for the durability tests: a build that answers before it commits
// must be caught by them. It is a constant, so that the product's build does not even contain it.
const earlyAck = false
