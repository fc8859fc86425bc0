@echo off
rem Drop models on this file, and each becomes a quantised file beside it, for ComfyUI.
rem
rem It runs convert_nvfp4.py, beside this file or in the folder above, with the Python of a ComfyUI
rem around this file or around the models: python_embeded of the portable version, or a venv.
setlocal EnableExtensions DisableDelayedExpansion

rem More options for every model, such as: set "OPTIONS=--card ada"
set "OPTIONS="

if "%~1"=="" echo Drop one or more .safetensors files on this file.
if "%~1"=="" goto end

set "SCRIPT=%~dp0convert_nvfp4.py"
if not exist "%SCRIPT%" set "SCRIPT=%~dp0..\convert_nvfp4.py"
if not exist "%SCRIPT%" echo error: convert_nvfp4.py is neither beside this file nor in the folder above
if not exist "%SCRIPT%" goto end

set "PYTHON="
set "ALONE="
call :find "%~dp0."
if not defined PYTHON call :find "%~dp1."
if not defined PYTHON set "PYTHON=python"
echo Python: %PYTHON%

:next
if "%~1"=="" goto end
echo.
echo "%~nx1"
"%PYTHON%" %ALONE% "%SCRIPT%" "%~1" %OPTIONS%
if errorlevel 1 echo error: "%~nx1" was not converted; convert_nvfp4.py --doctor looks at the set-up
shift
goto next

:end
echo.
pause
exit /b

rem Look for a Python in a folder and in all above it.
:find
set "FOLDER=%~f1"
:climb
if exist "%FOLDER%\python_embeded\python.exe" set "PYTHON=%FOLDER%\python_embeded\python.exe"
if defined PYTHON set "ALONE=-s"
if defined PYTHON exit /b
if exist "%FOLDER%\venv\Scripts\python.exe" set "PYTHON=%FOLDER%\venv\Scripts\python.exe"
if exist "%FOLDER%\.venv\Scripts\python.exe" set "PYTHON=%FOLDER%\.venv\Scripts\python.exe"
if defined PYTHON exit /b
for %%P in ("%FOLDER%\..") do set "PARENT=%%~fP"
if /i "%PARENT%"=="%FOLDER%" exit /b
set "FOLDER=%PARENT%"
goto climb
