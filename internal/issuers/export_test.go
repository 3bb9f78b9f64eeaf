package issuers

// Len is how many issuers are kept.
func (k *Keys) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.issuers)
}

// KeysOf is keysOf.
var KeysOf = keysOf
