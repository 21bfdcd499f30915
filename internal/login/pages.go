package login

import (
	"embed"

	"estover.dev/internal/page"
)

//go:embed *.html
var files embed.FS

// The pages.
var (
	signInPage     = page.Parse(files, "signin.html")
	recoveryPage   = page.Parse(files, "recovery.html")
	recoveredPage  = page.Parse(files, "recovered.html")
	invitationPage = page.Parse(files, "invitation.html")
	enrolPage      = page.Parse(files, "enrol.html")
	codesPage      = page.Parse(files, "codes.html")
	youPage        = page.Parse(files, "you.html")
)
