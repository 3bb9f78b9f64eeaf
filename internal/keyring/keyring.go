// Package keyring is the contract of root holders: what keeps the one key that everything else in
// an environment is under, outside of the database. A holder never gives that key away; it wraps
// and unwraps the environment's key-encryption keys.
//
// Guaranteed by every holder, and tested by holdertest: what Unwrap returns was wrapped by this
// holder with this very context, and is otherwise refused; calls are safe at the same time.
// Not guaranteed: that a holder's key survives (that is what custodians are for), nor that a
// holder outside of the development class protects from whoever runs as the server.
//
// Each kind of holder is a package below this one and a row in the table of package holders. It
// stands beside ledger and store; seal is below it, control is its caller.
package keyring

import (
	"context"

	"github.com/bailment/bailment/internal/seal"
)

// MaxID is the longest Descriptor.ID in bytes.
const MaxID = 128

// Descriptor says which holder it is. It is public: genesis carries it, so that a server tells a
// wrong holder from damaged data before it unwraps anything.
type Descriptor struct {
	Kind            string `json:"kind"`            // the row in the table of kinds, such as "file"
	ID              string `json:"id"`              // which key of that kind; tells nothing about the key
	DevelopmentOnly bool   `json:"developmentOnly"` // refuse it in the production class: the caller's duty
}

// Holder keeps a root key and works with it.
//
// Both methods may talk to a device or a network, and end when ctx does, with an error of kind
// unavailable. The context bytes (seal.KeyContext.Encode) are authenticated: Unwrap with any
// others fails. Keys are 1 to seal.MaxKey bytes. The key given to Wrap stays the caller's, the one
// returned by Unwrap becomes it. A holder with something to give back also implements io.Closer.
type Holder interface {
	Descriptor() Descriptor
	// Wrap returns the key encrypted under the root key; two calls differ in their results.
	Wrap(ctx context.Context, context []byte, key seal.Secret) ([]byte, error)
	// Unwrap returns the key, or fails with reason tampered if it wasn't wrapped by this holder
	// with these context bytes, or was changed since.
	Unwrap(ctx context.Context, context []byte, wrapped []byte) (seal.Secret, error)
}
