package engine

import (
	"context"

	"estover.dev"
)

// A Pairer is an Engine that can make a second admin for a target, so that the
// password of the first, which somebody has typed in, can be changed ([Kind.Pair]).
type Pairer interface {
	// Pair makes user, who may do what the admin like may, as whom the engine works.
	// It refuses if there is such a user, or if like may not give its rights to
	// others; then nobody was made.
	Pair(ctx context.Context, user, like string, s estover.Secret) error
}

// A Comparer is an Engine that can say whether a second admin has the rights of the
// first. It is one where somebody may be there under that name, and log in, before it has
// them all: whoever made it may have been cut off.
type Comparer interface {
	// Alike refuses if user has not the rights of like, and says what differs.
	Alike(ctx context.Context, user, like string) error
}

// A Drainer is an Engine that can let go of its connections and go on: of those that
// nobody uses at once, and of the others when they are free. Whoever looks at who is
// logged in as an admin that was replaced does not find Estover itself.
type Drainer interface{ Drain() }
