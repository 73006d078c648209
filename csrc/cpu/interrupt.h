// Long work asks between its steps whether it is to stop.
#pragma once

namespace elastofast {

// Throws if the program was interrupted (Ctrl-C) and says so in the thread that asks. Never called where threads share work.
// What it throws, and when it looks, is for the program to say that the solver is part of: for Python, module.cpp.
void stop_if_interrupted();

}  // namespace elastofast
