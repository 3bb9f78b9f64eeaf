//go:build planted_earlyack

package ledger

const earlyAck = true
