package server

// Belonging are the names of what belongs to a session.
func Belonging() (names []string) {
	for _, p := range (&Server{}).belonging() {
		names = append(names, p.Name)
	}
	return names
}
